"""The quickstart's model, fine-tuned to answer questions about Python's standard library.

    python train.py --config configs/quickstart.py
    python train.py --config configs/finetune_chat.py
    moejax generate runs/finetune_chat --chat --prompt 'What does os.path.join do?'

The first command trains the model, as runs/quickstart. Questions and answers are made of the
docstrings of the running Python: of 3.11.7 there are 5,469 to train on, and 163 held out, about the
files that the quickstart has held out, too. On the answers that are held out, the model has 2.023
bits per byte before, 1.544 after 500 steps and 1.531 after 1000. (Of the quickstart of before, with
8 coarser experts, 1200 steps were no better than 1000, with a lower loss in training.)

It takes a little less time than the quickstart: 3 min 33 s from start to end on 2 cores on which
the quickstart took 4 min 11 s an hour before (2026-11-29).

To 'What does os.path.join do?', the quickstart's model goes on writing until the tokens run out
(`--chat-template plain`: "while the query called by a list of 'seekence' caparent to a the set and
'string' ..."). After fine-tuning it answers "Return the time the specified file was the specified
item in the specified item." and ends: it has learned what an answer looks like, and is far too
small to know which is right.
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
