"""moejax: a Mixture-of-Experts laboratory and trainer for JAX."""

__version__ = "0.1.0"
