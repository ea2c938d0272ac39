"""Stages are named by their content and run once."""

import gc
import json
import weakref
from pathlib import Path

import pytest

from benchmarks.tables import stages
from benchmarks.tables.stages import Stage, Store


def test_the_order_of_the_content_does_not_matter_and_every_value_does(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one = store.stage('adapted', {'a': 1, 'b': [2, 3]})
    assert store.stage('adapted', {'b': [2, 3], 'a': 1}).key == one.key
    others = [('adapted', {'a': 1, 'b': [3, 2]}), ('tuned', {'a': 1, 'b': [2, 3]})]
    assert one.key not in {store.stage(kind, content).key for kind, content in others}


def test_a_finished_stage_is_read_and_an_interrupted_one_runs_again(tmp_path: Path) -> None:
    store, ran = Store(tmp_path), []
    stage, content = store.stage('probed', {'a': 1}), {'a': 1}

    def fail(stage: object) -> dict[str, int]:
        raise KeyboardInterrupt

    def work(stage: object) -> dict[str, int]:
        ran.append(stage)
        return {'value': 7}

    with pytest.raises(KeyboardInterrupt):
        store.run('probed', content, fail)
    assert not stage.made
    assert [store.run('probed', content, work).record for _ in range(2)] == 2 * [{'value': 7}]
    assert len(ran) == 1
    assert json.loads((stage.folder / 'stage.json').read_text())['content'] == {'a': 1}


def test_without_resume_the_checkpoint_of_an_unfinished_stage_is_dropped(tmp_path: Path) -> None:
    for resume in (True, False):
        store = Store(tmp_path, resume)
        stage = store.stage('adapted', {'resume': resume})
        stage.folder.mkdir(parents=True)
        stage.checkpoint.write_bytes(b'half')
        store.run('adapted', {'resume': resume}, lambda s: {'there': s.checkpoint.is_file()})
        assert stage.record['there'] is resume
        assert not stage.checkpoint.exists()


def test_other_processes_wait_for_the_record_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    stage = store.stage('probed', {})
    monkeypatch.setattr(stages, 'is_first_process', lambda: False)

    def first_writes(seconds: float) -> None:
        stage.folder.mkdir(parents=True)
        (stage.folder / 'stage.json').write_text('{"record": {"value": 1}}')

    monkeypatch.setattr(stages.time, 'sleep', first_writes)
    done = store.run('probed', {}, lambda s: pytest.fail('only the first process works'))
    assert done.record == {'value': 1}


def test_the_ledger_stands_for_a_folder_that_was_not_brought_along(tmp_path: Path) -> None:
    ran: list[str] = []

    def work(stage: Stage) -> dict[str, int]:
        ran.append(stage.key)
        (stage.folder / 'model').write_text('numbers')
        return {'value': 7}

    def open_store(folder: str) -> tuple[Store, Stage]:
        store = Store(tmp_path / folder, ledger=tmp_path / 'stages.jsonl')
        return store, store.stage('adapted', {'a': 1})

    store, stage = open_store('here')
    store.run('adapted', {'a': 1}, work)
    store, stage = open_store('there')
    assert store.run('adapted', {'a': 1}, work).record == {'value': 7} and len(ran) == 1
    assert not stage.folder.exists()
    probed = store.run('probed', {}, lambda s: {'read': (stage.folder / 'model').read_text()}, needs=stage)
    assert probed.record == {'read': 'numbers'} and len(ran) == 2
    assert len((tmp_path / 'stages.jsonl').read_text().splitlines()) == 2


def test_the_images_of_a_finished_stage_are_let_go(tmp_path: Path) -> None:
    class Images:
        """What a stage works on."""

    def run(store: Store, value: int) -> weakref.ref[Images]:
        images = Images()
        for _ in range(2):
            stage = store.run('adapted', {'a': value}, lambda s: {'value': len(vars(images))})
        store.make(stage)
        return weakref.ref(images)

    store = Store(tmp_path)
    found = [run(store, value) for value in range(3)]
    gc.collect()
    assert [image() for image in found] == [None] * 3
