"""The quickstart's model, fine-tuned to answer questions about Python's standard library.

    python train.py --config configs/quickstart.py
    python train.py --config configs/finetune_chat.py
    moejax generate runs/finetune_chat --chat --prompt 'What does os.path.join do?'

The first command trains the model, as runs/quickstart. Questions and answers are made of the
docstrings of the running Python: of 3.11.7 there are 5,469 to train on, and 163 held out, about the
files that the quickstart has held out, too. On the answers that are held out, the model has 2.029
bits per byte before, 1.559 after 500 steps and 1.534 after 1000. More steps are no better: a run of
1200 ended at 1.563, with a lower loss in training.

It takes about as long as the quickstart: 5 min 20 s from start to end on 2 cores on which the
quickstart took 5 min 40 s the same hour (2026-11-29; that machine was at half of its usual speed).

To 'What does os.path.join do?', the quickstart's model goes on writing until the tokens run out
(`--chat-template plain`: "standard previous must be a dependence of the tokens in the compiler,
theme in the record of the library ..."). After fine-tuning it answers "Destroy the given module."
and ends: it has learned what an answer looks like, and is far too small to know which is right.
"""

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
        "run.steps": 1000,
        "run.eval_every": 500,
        "run.checkpoint_every": 500,
        "run.sample_prompt": "What does os.path.join do?",
    }
    return changed(quickstart.get_config(), tuned)
