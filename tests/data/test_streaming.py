"""Streamed data: crops, batches as a function of (seed, epoch, step), and a run that resumes."""

import io

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ocresnet.data import crops
from ocresnet.data.batches import Batching
from ocresnet.data.sources import load_dataset, open_dataset
from ocresnet.data.streaming import stream
from ocresnet.stage_cost.trajectory import trajectory
from ocresnet.systems.resnet import ResNetConfig
from ocresnet.training import loop
from ocresnet.training.config import TrainingConfig
from ocresnet.training.fit import fit, for_dataset

TRAIN, TEST, SIZE = 22, 7, 16
HOW = Batching(seed=3, batch_size=4, augmentation="resized_crop_flip")


def original(index: int) -> np.ndarray:
    """An image whose red and green say where a pixel is, and whose blue says which image it is."""
    height, width = 20 + index % 5, 30 - index % 7
    rows, columns = np.mgrid[:height, :width]
    red, green = 255 * columns / (width - 1), 255 * rows / (height - 1)
    return np.stack([red, green, np.full(rows.shape, 10 * index)], -1).round().astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that TFDS takes for ImageNet."""
    reference = tfds.builder_cls("imagenet2012")

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = reference.VERSION
        name = reference.name

        def _info(self):
            features = {
                "file_name": tfds.features.Text(),
                "image": tfds.features.Image(encoding_format="png"),
                "label": tfds.features.ClassLabel(num_classes=1000),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager):
            return {"train": self._examples(TRAIN), "validation": self._examples(TEST)}

        def _generate_examples(self):
            raise AssertionError

        def _examples(self, count):
            for index in range(count):
                buffer = io.BytesIO()
                Image.fromarray(original(index)).save(buffer, "PNG")
                buffer.seek(0)
                yield index, {"file_name": str(index), "image": buffer, "label": index}

    folder = tmp_path_factory.mktemp("imagenet")
    Builder(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture
def data(folder):
    builder = tfds.builder("imagenet2012", data_dir=folder, file_format="array_record")
    return stream(builder, image_size=SIZE, test_split="validation")


def test_parts_and_labels(data):
    assert data.parts == ("train", "test") and data.image_shape == (SIZE, SIZE, 3)
    assert (data.samples("train"), data.samples("test"), data.classes) == (TRAIN, TEST, 1000)
    assert sorted(data.labels("train")) == list(range(TRAIN))
    assert data.labels("test").dtype == np.int32


def test_evaluation_images_are_central_crops(data):
    images, labels = data.images("test"), data.labels("test")
    assert images.shape == (TEST, SIZE, SIZE, 3) and len(images) == TEST and images.ndim == 4
    chosen = np.array([4, 0, 4])
    np.testing.assert_array_equal(images[chosen], images[:][chosen])
    assert images[TEST:].shape == (0, SIZE, SIZE, 3)
    for image, label in zip(images[:], labels, strict=True):
        height, width, _ = original(label).shape
        side = 224 / 256 * min(height, width)
        # Bilinear interpolation keeps ramps: what pixel i shows is known.
        for size, ramp in ((width, image[0, :, 0]), (height, image[:, 0, 1])):
            middle = (size - side) / 2 + (np.arange(SIZE) + 0.5) * side / SIZE - 0.5
            np.testing.assert_allclose(ramp, 255 * middle / (size - 1), atol=2.5)
        assert (image[..., 2] == 10 * label).all()


def test_batches_depend_on_seed_epoch_and_step_alone(data):
    def batches(epoch, first_step=0, how=HOW):
        return list(data.feed(how)(epoch, first_step))

    whole = batches(1)
    assert len(whole) == TRAIN // 4  # the last two samples make no batch
    assert whole[0].images.shape == (1, 4, SIZE, SIZE, 3) and whole[0].images.dtype == np.uint8
    for first_step in (0, 3):
        again = batches(1, first_step)
        jax.tree.map(np.testing.assert_array_equal, again, whole[first_step:])
    seen = np.concatenate([batch.labels.ravel() for batch in whole])
    assert len(set(seen)) == 20
    for batch in whole:
        blue = batch.images[..., 2]
        np.testing.assert_array_equal(
            blue, np.broadcast_to(10 * batch.labels[..., None, None], blue.shape)
        )
    windows = {(image[0, 0, 1], image[-1, 0, 1]) for batch in whole for image in batch.images[0]}
    assert len(windows) > 15  # every image is cut in its own way
    # Another epoch or seed has another order, and cuts other windows out of the same image.
    for others in (batches(2), batches(1, how=Batching(4, 4, 1, "resized_crop_flip"))):
        assert not np.array_equal(others[0].labels, whole[0].labels)
        first, second = (
            {
                int(label): image
                for batch in run
                for label, image in zip(batch.labels[0], batch.images[0], strict=True)
            }
            for run in (whole, others)
        )
        common = first.keys() & second.keys()
        assert len(common) > 10
        assert all(not np.array_equal(first[label], second[label]) for label in common)


def test_devices_and_processes_share_the_same_batch(data):
    whole = next(data.feed(HOW)(0, 1))
    parts = []
    for process in range(2):
        how = Batching(3, 4, 2, "resized_crop_flip", process=process, processes=2)
        part = next(data.feed(how)(0, 1))
        assert part.images.shape == (2, 1, SIZE, SIZE, 3) and part.labels.shape == (2, 1)
        parts.append(part.images.reshape(2, SIZE, SIZE, 3))
    np.testing.assert_array_equal(np.concatenate(parts), whole.images[0])


def test_without_augmentation_batches_are_central_crops(data):
    batch = next(data.feed(Batching(0, 4))(0, 0))
    labels = data.labels("train")
    places = np.array([np.flatnonzero(labels == label)[0] for label in batch.labels[0]])
    np.testing.assert_array_equal(batch.images[0], data.images("train")[places])


def test_random_crops_are_windows_of_many_sizes_and_both_hands():
    ramp = np.linspace(0, 255, 256).round().astype(np.uint8)
    image = np.stack(
        [np.tile(ramp, (256, 1)), np.tile(ramp[:, None], (1, 256)), np.zeros((256, 256))], -1
    )
    image = Image.fromarray(image.astype(np.uint8))
    windows = []
    for seed in range(200):
        cut = np.asarray(crops.random_crop(np.random.default_rng(seed), (32, 32, 3))(image))
        red, green = cut[0, :, 0].astype(float), cut[:, 0, 1].astype(float)
        assert (np.diff(green) >= 0).all()
        windows.append((red[-1] - red[0], green[-1] - green[0]))
    columns, rows = np.abs(np.transpose(windows)) * 32 / 31 / 255
    mirrored = np.mean([columns < 0 for columns, _ in windows])
    assert 0.4 < mirrored < 0.6
    area, aspect = columns * rows, columns / rows
    assert 0.07 < area.min() < 0.15 and 0.8 < area.max() <= 1.02
    assert 0.7 < aspect.min() < 0.85 and 1.2 < aspect.max() < 1.42
    narrow = Image.new("L", (300, 2), 7)  # no window of the allowed shapes fits
    cut = np.asarray(crops.random_crop(np.random.default_rng(0), (4, 4, 1))(narrow))
    assert cut.shape == (4, 4) and (cut == 7).all()


def test_split_holds_out_the_samples_that_a_dataset_would(data):
    split = data.split(0.25, seed=1)
    assert (split.samples("train"), split.samples("validation")) == (16, 6)
    together = np.concatenate([split.labels("train"), split.labels("validation")])
    assert sorted(together) == list(range(TRAIN))
    assert split.choosing_part == "validation" and data.choosing_part == "train"
    assert len({data.fingerprint, split.fingerprint, data.split(0.25, seed=2).fingerprint}) == 3
    assert split.fingerprint == data.split(0.25, seed=1).fingerprint
    with pytest.raises(ValueError, match="split only once"):
        split.split(0.1)
    with pytest.raises(ValueError, match=r"share in \[0, 1\)"):
        data.split(1.0)


class Killed(BaseException):
    """Stands for a SIGKILL."""


@pytest.mark.slow
def test_fit_trains_on_a_stream_and_resumes_to_the_same_bits(data, tmp_path, monkeypatch):
    """Three short runs, with a validation split and evaluation of streamed images."""
    network = for_dataset(ResNetConfig.homogeneous(2, 4, stem_stride=2), data)
    config = TrainingConfig(
        epochs=2, batch_size=4, augmentation="resized_crop_flip", validation=0.2
    )

    def run(workdir):
        return fit(
            network, config, data, workdir=workdir, devices=jax.devices()[:1], progress=False
        )

    whole = run(tmp_path / "whole")
    assert len(whole.metrics) == 2 and set(whole.trajectories) == {"train", "validation", "test"}
    mapped, done = loop.map_over_devices, 0

    def dying(*args):
        step = mapped(*args)

        def dying_step(*arguments):
            nonlocal done
            done += 1
            if done > 6:
                raise Killed
            return step(*arguments)

        return dying_step

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "map_over_devices", dying)
        run(tmp_path / "killed")
    resumed = run(tmp_path / "killed")
    jax.tree.map(np.testing.assert_array_equal, resumed.network, whole.network)
    test = trajectory(whole.network, data.images("test")[:], data.labels("test"))
    np.testing.assert_allclose(whole.trajectories["test"].losses, test.losses, rtol=1e-6)


def test_imagenet_is_streamed_by_name(folder):
    data = open_dataset("imagenet2012", folder)
    assert data.image_shape == (224, 224, 3) and data.classes == 1000
    assert (data.source, data.data_dir) == ("imagenet2012", str(folder))
    assert data.images("test")[:2].shape == (2, 224, 224, 3)
    mean, deviation = data.pixel_statistics
    pixels = data.images("train")[:] / 1.0
    np.testing.assert_allclose(mean, pixels.mean((0, 1, 2)))
    np.testing.assert_allclose(deviation, pixels.std((0, 1, 2)))


def test_what_cannot_work_is_refused(data, folder, tmp_path):
    with pytest.raises(ValueError, match="too large for memory: open_dataset streams it"):
        load_dataset("imagenet2012", folder)
    with pytest.raises(FileNotFoundError, match="imagenet2012 is not prepared in"):
        open_dataset("imagenet2012", tmp_path)
    with pytest.raises(ValueError, match="'crop', but streamed images can have none or resized"):
        data.feed(Batching(0, 4, augmentation="crop"))
    network = for_dataset(ResNetConfig.homogeneous(1, 4), data)
    config = TrainingConfig(epochs=1, batch_size=4, augmentation="crop")
    with pytest.raises(ValueError, match="imagenet2012 can have none, resized_crop_flip"):
        fit(network, config, data, devices=jax.devices()[:1])
    builder = tfds.builder("imagenet2012", data_dir=folder, file_format="array_record")
    with pytest.raises(ValueError, match="image, label, train and test are needed"):
        stream(builder, image_size=8)
    with pytest.raises(ValueError, match="an image cannot be decoded"):
        crops.decoded(b"no image", crops.central_crop((8, 8, 3)))


def test_a_damaged_record_is_named(data):
    beyond = data.records["train"]
    object.__setattr__(beyond, "index", np.arange(TRAIN) + TRAIN)
    with pytest.raises(ValueError, match=r"a record of .*imagenet2012.* cannot be read"):
        list(data.feed(HOW)(0, 0))
