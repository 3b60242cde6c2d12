"""What the binaries share: flags, presets, the command line, tables and records."""
