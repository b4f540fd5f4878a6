"""What every process shares: vocabulary, schemas, channels, configuration, sandboxing. Imports no process."""
