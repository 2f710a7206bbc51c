"""A server around a made-up model, for tests: in this process, or on a port in a thread."""

import contextlib
import time
from types import SimpleNamespace

import httpx
from made_up_runner import MadeUpRunner, make_sizes

from moejax.config import MeshConfig, ModelConfig, MoEConfig
from moejax.data.byte_tokenizer import ByteTokenizer
from moejax.inference.engine.engine import Engine
from moejax.inference.engine.engine_settings import EngineSettings
from moejax.inference.engine.texts import TextRules
from moejax.inference.open_model import OpenModel
from moejax.inference.server.app import make_app
from moejax.inference.server.limits import Limits
from moejax.inference.server.listen import Listener, open_socket
from moejax.inference.server.served import Served

VOCAB = 257
END = 256
NAME = "tiny"
CONTEXT = 48
"""Fewer than the made-up pages hold: texts go on beyond it."""


def make_model(**changes) -> OpenModel:
    """A model of bytes without parameters, which writes conversations plainly."""
    tokenizer = ByteTokenizer()
    made = {
        # One routed layer, the last, as that of the made-up runner.
        "config": ModelConfig(vocab_size=VOCAB, moe=MoEConfig(first_dense=2)),
        "layout": MeshConfig(),
        "vocab_size": VOCAB,
        "params": {},
        "bias_LE": None,
        "tokenizer": tokenizer,
        "context": CONTEXT,
        "beginning": (END,),
        "ends": frozenset({END}),
        "description": "a made-up model",
        "data": None,
        "chat_template": "plain",
    }
    return OpenModel(**made | changes)


def make_engine(model: OpenModel, *, queue: int = 100, window=CONTEXT, slow=0.0, **sizes) -> Engine:
    """An engine of the made-up model, each call of which takes ``slow`` seconds at least."""
    runner = MadeUpRunner(make_sizes(**sizes), VOCAB, window)
    extend = runner.extend

    def extend_slowly(call):
        time.sleep(slow)
        return extend(call)

    runner.extend = extend_slowly if slow else extend
    rules = TextRules(tokenizer=model.tokenizer, ends=model.ends, vocab_size=VOCAB, window=window)
    return Engine(runner, rules, EngineSettings(max_queue=queue))


def make_served(*, limits: Limits | None = None, model=None, engine=None, **settings) -> Served:
    """The made-up model, or another one, served. Close its engine."""
    model = model or make_model()
    return Served(
        name=NAME,
        model=model,
        engine=engine or make_engine(model, **settings),
        limits=limits or Limits(),
        window=CONTEXT,
        created=1,
    )


@contextlib.contextmanager
def serve(keys=(), hosts=(), **settings):
    """A server on a port: ``url``, ``served``, ``runner``."""
    served = make_served(**settings)
    app = make_app(served, keys, hosts)
    seconds = served.limits.max_time
    listener = Listener(app, open_socket("127.0.0.1", 0, seconds), seconds)
    try:
        yield SimpleNamespace(url=listener.url, served=served, listener=listener)
    finally:
        listener.drain()
        served.engine.close()


@contextlib.asynccontextmanager
async def ask_app(served: Served, keys=(), hosts=()):
    """A client of an app in this process."""
    transport = httpx.ASGITransport(make_app(served, keys, hosts))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client
