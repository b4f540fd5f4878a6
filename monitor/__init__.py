"""The privileged process: supervises the others, decides on every SA with its own eyes, alone touches the data plane."""
