"""The routed layer: experts, dispatch, kernels, balance, and experts across devices."""
