"""The quickstart's model, fine-tuned on questions and answers."""

import quickstart

from moejax.config import Config, changed


def get_config() -> Config:
    tuned = {
        "data.train": "stdlib:docstrings",
        "data.chat_template": "plain",
        "data.sequence_length": 256,
        "data.batch_size": 8,
        "optim.learning_rate": 0.003,
        "optim.muon_learning_rate": 0.01,
        "optim.router_learning_rate": 0.001,
        "run.init_from": "runs/quickstart",
        "run.steps": 1200,
        "run.eval_every": 600,
        "run.checkpoint_every": 600,
        "run.sample_prompt": "What is threading.Event?",
    }
    return changed(quickstart.get_config(), tuned)
