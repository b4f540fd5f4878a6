"""The unprivileged network process: parses what the world sends, holds no key."""
