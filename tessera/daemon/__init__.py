"""What every daemon of ours shares: flags with environment variables, the config file, logs, signals, the status port."""
