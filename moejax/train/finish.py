"""The end of a run: its sample of text, its report, and the last lines printed."""

import numpy as np

from moejax.config.config import Config
from moejax.config.errors import ConfigError
from moejax.config.measure import Measure
from moejax.config.mixture import explain_epochs
from moejax.data.chat.choose import list_models
from moejax.data.chat.find_template import find_template
from moejax.data.tokenizer import Tokenizer
from moejax.inference.chat_prompts import find_turn_end, write_prompt
from moejax.inference.generation import Generator
from moejax.inference.sampling import Sampling
from moejax.runs.pages.report import write_report
from moejax.runs.run_directory import RunDirectory
from moejax.runtime.number_words import duration, short
from moejax.runtime.processes import say
from moejax.train.environment import Environment
from moejax.train.metrics import describe_result
from moejax.train.state import TrainState
from moejax.train.tally import Tally
from moejax.train.tasks import LanguageTask, Task


def finish(
    config: Config,
    task: Task,
    measure: Measure,
    environment: Environment,
    state: TrainState,
    tally: Tally,
) -> None:
    """Write the sample and the report, and print where everything is."""
    run, text = environment.run, None
    if isinstance(task, LanguageTask) and config.run.sample_tokens:
        text = continue_prompt(config, task.tokenizer, environment, state)
    run.write_sample(text)
    if run.owner:
        write_report(run.path)
    say(
        f"Trained {tally.step:,} steps, {short(tally.tokens)} {measure.unit}, in"
        f" {duration(tally.seconds)}."
    )
    say_result(config, run)


def continue_prompt(
    config: Config, tokenizer: Tokenizer, environment: Environment, state: TrainState
) -> str | None:
    """The sample: the prompt and its continuation; of a run on conversations, the message and its
    answer. If the model cannot generate, a line says why, and the sample is None.
    """
    run, length = config.run, config.data.sequence_length
    try:
        before, prompt, ends = begin_sample(config, tokenizer, environment.run)
        generator = Generator(
            config.model,
            config.mesh,
            state.params,
            state.bias_LE,
            mesh=environment.mesh,
            tokenizer=tokenizer,
            ends=ends,
            window=length,
        )
    except ConfigError as error:
        say(f"no sample: {error}")
        return None
    sampling = Sampling(tokens=run.sample_tokens, temperature=run.sample_temperature, seed=run.seed)
    ids = prompt[-length:].astype(np.int32)
    (continuation,) = generator.generate([ids], sampling).continuations
    return before + continuation.text


def begin_sample(
    config: Config, tokenizer: Tokenizer, run: RunDirectory
) -> tuple[str, np.ndarray, frozenset[int]]:
    """The prompt of the sample, as a text and as tokens, and the tokens that end it. Raises
    ``ConfigError``.
    """
    text, ends = config.run.sample_prompt, tokenizer.edges.ends
    if config.data.used_template is None:
        ids, _ = tokenizer.encode(text.encode())
        return text, np.concatenate([tokenizer.edges.before_document, ids]), ends
    template = find_template(
        config.data.used_template, tokenizer, list_models(config, run.tokenizer)
    )
    said = [{"role": "user", "content": text}]
    prompt = write_prompt(template, tokenizer, said, place="--run.sample-prompt")
    return tokenizer.show(prompt), np.asarray(prompt), ends | find_turn_end(template, tokenizer)


def say_result(config: Config, run: RunDirectory) -> None:
    """The last lines: the figures, the files, what to do next."""
    if not run.owner:
        return
    line = run.last_metrics("validation")
    steps = max(config.run.steps, line["step"] if line else 0)
    say(
        f"report      {run.report}\nmetrics     {run.metrics_file}\n"
        f"checkpoints {run.checkpoints} (the last {config.run.keep_checkpoints}, the best)"
    )
    longer = f" `--run.steps {2 * steps}` goes on training;"
    if explain_epochs(config.data.sources, steps, 2 * steps):
        longer = ""  # their epochs are of these steps
    say(f"next        open the report;{longer} another --run.directory starts afresh")
    if line and line["loss"] is not None:
        say(describe_result(line))
