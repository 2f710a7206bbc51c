"""What lies under JAX and above the settings: devices, processes, signals, memory."""
