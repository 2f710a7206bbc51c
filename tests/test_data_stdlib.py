"""The standard library as a corpus: which files, which side, prepared whole or not at all."""

from pathlib import Path

import pytest

from moejax.config import ConfigError, DataConfig
from moejax.data import stdlib_corpus
from moejax.data.sources import open_documents, open_text
from moejax.data.stdlib_corpus import StdlibCorpus, find_library, list_library_files, prepare_stdlib


@pytest.fixture
def small_library(tmp_path, monkeypatch):
    """A library of 60 modules, one of them not UTF-8, between things that do not belong."""
    root = tmp_path / "lib"
    files = {f"module_{i:02}.py": b"x = %d\n" % i for i in range(60)}
    files["package/latin.py"] = b"# caf\xe9\n"
    left_out = {
        "empty.py": b"",
        "notes.txt": b"not Python",
        "_sysconfigdata_linux.py": b"made on each machine",
        "test/test_os.py": b"test",
        "idlelib/idle_test/test_run.py": b"test",
        "encodings/cp437.py": b"table",
        "pydoc_data/topics.py": b"table",
        "site-packages/numpy/core.py": b"not ours",
        "dist-packages/apt.py": b"not ours",
        "config-3.12-x86/python-config.py": b"made on each machine",
    }
    for path, text in (files | left_out).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(text)
    monkeypatch.setattr(stdlib_corpus, "find_library", lambda: root)
    return files


def open_small(tmp_path):
    return open_documents(DataConfig(directory=str(tmp_path / "data")))


def all_documents(documents):
    return [documents[i] for i in range(len(documents))]


def test_the_real_library():
    files = list_library_files(find_library())
    train = {file.path for file in files if file.split == "train"}
    validation = {file.path for file in files if file.split == "validation"}
    assert len(train) > 300
    assert 0.01 < len(validation) / len(files) < 0.08
    assert not any({"test", "encodings"} & set(Path(file.path).parts[:-1]) for file in files)
    # The split depends on nothing but the path.
    assert {"argparse.py", "typing.py"} <= train
    assert {"inspect.py", "posixpath.py"} <= validation


def test_what_belongs_and_raw_bytes(tmp_path, small_library):
    corpus = open_small(tmp_path)
    both = all_documents(corpus.train) + all_documents(corpus.validation)
    assert sorted(both) == sorted(small_library.values())
    assert b"# caf\xe9\n" in both
    assert "the standard library of Python 3." in corpus.description
    options = {"split": "validation", "field": "text", "directory": str(tmp_path / "data")}
    documents, about = open_text("stdlib", **options)
    assert all_documents(documents) == all_documents(corpus.validation)
    assert about.endswith("of the standard library that are held out")


def test_quiet_ordered_and_prepared_once(tmp_path, small_library, capfd):
    builder, files = prepare_stdlib(str(tmp_path / "data"))
    train = [example["path"].decode() for example in builder.as_data_source("train")]
    assert train == [file.path for file in files if file.split == "train"]
    assert train == sorted(train)
    info = Path(builder.data_dir, "dataset_info.json")
    written = info.stat().st_mtime_ns
    prepare_stdlib(str(tmp_path / "data"))
    assert info.stat().st_mtime_ns == written
    assert capfd.readouterr() == ("", "")


def test_another_library_is_kept_apart(tmp_path, small_library):
    before, _ = prepare_stdlib(str(tmp_path / "data"))
    (tmp_path / "lib" / "module_00.py").write_bytes(b"patched = True\n")
    after, _ = prepare_stdlib(str(tmp_path / "data"))
    assert before.data_dir != after.data_dir
    assert before.is_prepared()


def test_interrupted_in_the_middle(tmp_path, small_library, monkeypatch):
    """An interrupt leaves nothing that looks prepared; the next start prepares again."""
    generate = StdlibCorpus._generate_examples

    def interrupted(self, split):
        yield next(generate(self, split))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StdlibCorpus, "_generate_examples", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_small(tmp_path)
    corpus = open_small(tmp_path)
    assert len(corpus.train) + len(corpus.validation) == len(small_library)


def test_another_process_is_faster(tmp_path, small_library, monkeypatch):
    generate = StdlibCorpus._generate_examples
    others = []

    def overtaken(self, split):
        if not others:
            others.append("starts later")
            others.append(open_small(tmp_path))  # and is done first
        yield from generate(self, split)

    monkeypatch.setattr(StdlibCorpus, "_generate_examples", overtaken)
    corpus = open_small(tmp_path)
    assert all_documents(corpus.train) == all_documents(others[1].train)


def test_no_library_and_no_place(tmp_path, small_library, monkeypatch):
    (tmp_path / "data").write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match="--data.directory"):
        open_small(tmp_path)
    monkeypatch.setattr(stdlib_corpus, "find_library", lambda: tmp_path / "nothing")
    with pytest.raises(ConfigError, match="--data.source files"):
        open_small(tmp_path)
