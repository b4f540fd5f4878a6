"""What every process shares: vocabulary, schemas, channels, configuration, sandboxing. Imports none of the processes."""
