"""The privileged process: supervises the others, judges every SA with its own eyes, alone touches the data plane."""
