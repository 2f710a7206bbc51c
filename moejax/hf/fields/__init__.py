"""Fields of ``config.json`` that say in another way what ``ModelConfig`` says."""
