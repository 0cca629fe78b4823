"""What knows neither JAX nor networks: settings, messages, files, command lines."""
