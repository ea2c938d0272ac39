"""The hub, of which a small server on this machine speaks enough: names, cards, errors, up and back."""

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants, metadata_load
from safetensors.torch import save_file
from torch import Tensor

from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.checkpoints import load_backbone, merge_adapter, read_adapter, read_weights, save_adapter
from explora_geo.checkpoints.remote import fetch_file, local_file
from explora_geo.checkpoints.sharing import model_card, pull, push
from explora_geo.cli import main
from explora_geo.models import ViT, create_vit
from explora_geo.models.normalization import Normalization
from explora_geo.models.weights import ViTSmall16_Weights

MODEL = 'vit_tiny_patch8_32'
REPORT = {
    'scores': {
        'labels': {'classes': 10, 'train': 400, 'test': 500},
        'rows': [
            {
                'title': 'k-NN',
                'source': {'mean': 0.7316},
                'adapted': {'mean': 0.7972},
                'gain': {'mean': 0.0656, 'low': 0.042, 'high': 0.0888},
            }
        ],
    },
    'adaptation': {'notation': 'anchor-[L]-r32', 'steps': 24},
    'verdict': {'text': 'Adapting helps.'},
}


class Hub:
    """Repositories by name, each a list of commits, each the bytes of files by name."""

    def __init__(self) -> None:
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.gated: set[str] = set()
        self.asked: list[tuple[str, str, str | None, str | None]] = []
        self.cut = 0

    @staticmethod
    def commit(repo: str, number: int) -> str:
        return hashlib.sha1(f'{repo} {number}'.encode()).hexdigest()

    def add(self, repo: str, **files: bytes) -> str:
        """A commit of these files over those before."""
        commits = self.commits.setdefault(repo, [])
        commits.append({**(commits[-1] if commits else {}), **files})
        return self.commit(repo, len(commits) - 1)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition('?')[0].strip('/')
        token = request.headers.get('Authorization')
        self.asked.append((request.command, path, request.headers.get('Range'), token))
        if request.command == 'POST':
            length = int(request.headers.get('Content-Length', 0))
            return self.post(request, path, request.rfile.read(length), token)
        parts = path.removeprefix('api/models/').split('/')
        repo = '/'.join(parts[:2])
        if repo not in self.commits:
            return send(request, 404, code='RepoNotFound')
        if repo in self.gated and token is None:
            return send(request, 403, code='GatedRepo')
        commits = self.commits[repo]
        known = {self.commit(repo, i): files for i, files in enumerate(commits)} | {'main': commits[-1]}
        revision = parts[3] if len(parts) > 3 else 'main'
        if revision not in known:
            return send(request, 404, code='RevisionNotFound')
        files = known[revision]
        if path.startswith('api/models/'):
            names = [{'rfilename': name} for name in files]
            return send(request, 200, json.dumps({'id': repo, 'siblings': names, 'tags': []}).encode())
        sha = next(sha for sha, found in known.items() if found is files and sha != 'main')
        name = '/'.join(parts[4:])
        if name not in files:
            return send(request, 404, code='EntryNotFound', commit=sha)
        return send(request, 200, files[name], commit=sha, cut=self.cut)

    def post(self, request: BaseHTTPRequestHandler, path: str, body: bytes, token: str | None) -> None:
        if token is None:
            return send(request, 401)
        if path == 'api/repos/create':
            made = json.loads(body)
            repo = f'{made["organization"]}/{made["name"]}'
            if repo in self.commits:
                return send(request, 409, json.dumps({'url': f'{constants.ENDPOINT}/{repo}'}).encode())
            self.commits[repo] = []
            return send(request, 200, json.dumps({'url': f'{constants.ENDPOINT}/{repo}'}).encode())
        if path == 'api/validate-yaml':
            return send(request, 200, b'{}')
        repo = '/'.join(path.split('/')[2:4])
        if '/preupload/' in path:
            modes = [
                {'path': f['path'], 'uploadMode': 'regular', 'shouldIgnore': False}
                for f in json.loads(body)['files']
            ]
            return send(request, 200, json.dumps({'files': modes}).encode())
        lines = [json.loads(line)['value'] for line in body.splitlines()]
        files = {v['path']: base64.b64decode(v['content']) for v in lines if 'content' in v}
        sha = self.add(repo, **files)
        answer = {'commitUrl': f'{constants.ENDPOINT}/{repo}/commit/{sha}', 'commitOid': sha}
        return send(request, 200, json.dumps(answer).encode())


def send(
    request: BaseHTTPRequestHandler,
    status: int,
    body: bytes = b'{}',
    code: str | None = None,
    commit: str | None = None,
    cut: int = 0,
) -> None:
    """Answer as the hub does; with `cut` the connection ends after so many bytes."""
    wanted = request.headers.get('Range')
    start = int(wanted[6:].split('-')[0]) if wanted and status == 200 else 0
    request.send_response(206 if start else status)
    if code:
        request.send_header('X-Error-Code', code)
    if commit:
        request.send_header('X-Repo-Commit', commit)
    request.send_header('ETag', f'"{hashlib.sha256(body).hexdigest()}"')
    request.send_header('Content-Length', str(len(body) - start))
    if start:
        request.send_header('Content-Range', f'bytes {start}-{len(body) - 1}/{len(body)}')
    request.end_headers()
    if request.command != 'HEAD':
        request.wfile.write(body[start : cut if cut and not start else None])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub without repositories, and an empty cache."""
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            state.answer(self)

        do_GET = do_HEAD = do_POST = handle_any

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{http.server_port}'
        monkeypatch.setattr(constants, 'ENDPOINT', url)
        monkeypatch.setattr(
            constants, 'HUGGINGFACE_CO_URL_TEMPLATE', url + '/{repo_id}/resolve/{revision}/{filename}'
        )
        monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
        monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
        monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path / 'no token'))
        monkeypatch.delenv('HF_TOKEN', raising=False)
        yield state
        http.shutdown()


def blob(state: dict[str, Tensor], path: Path) -> bytes:
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    return path.read_bytes()


@pytest.fixture
def model(base_state: dict[str, Tensor], tmp_path: Path) -> bytes:
    """Weights of `vit_tiny_patch8_32` as a file's bytes."""
    return blob(base_state, tmp_path / 'published.safetensors')


def readme(license: str) -> bytes:
    return f'---\nlicense: {license}\n---\n# Weights\n'.encode()


def test_dinov3_comes_from_the_hub_with_its_own_normalization(
    hub: Hub, small_names: None, tmp_path: Path
) -> None:
    state = create_vit('vit_small_patch16_dinov3').state_dict()
    content = blob(state, tmp_path / 'published.safetensors')
    hub.add('facebook/dinov3-vits16-pretrain-lvd1689m', **{'model.safetensors': content})
    assert not local_file(ViTSmall16_Weights.LVD1689M_DINOV3.url).is_file()
    vit = load_backbone(None, 'ViTSmall16_Weights.LVD1689M_DINOV3')
    assert torch.equal(vit.reg_token, state['reg_token']) and 'DINOv3 License' in vit.license
    assert vit.normalization is not None and vit.normalization.mean[0] == pytest.approx(255 * 0.485)
    assert local_file(ViTSmall16_Weights.LVD1689M_DINOV3.url).read_bytes() == content


def test_a_name_means_the_newest_commit_which_is_recorded_and_can_be_asked_for(
    hub: Hub, model: bytes
) -> None:
    first = hub.add('own/vit', **{'model.safetensors': model, 'README.md': readme('apache-2.0')})
    second = hub.add('own/vit', **{'model.safetensors': model, 'other/weights.safetensors': model})
    stored = read_weights('hf:own/vit')
    assert stored.source == stored.facts.base == f'hf:own/vit@{second}/model.safetensors'
    assert stored.facts.license == 'apache-2.0'
    assert fetch_file(f'hf:own/vit@{first}').commit == first
    assert fetch_file('hf:own/vit/other/weights.safetensors').commit == second
    vit = load_backbone(MODEL, 'hf:own/vit')
    assert vit.base == stored.source and vit.license == 'apache-2.0'


def test_without_a_network_the_cache_serves(hub: Hub, model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.add('own/vit', **{'model.safetensors': model})
    online = fetch_file('hf:own/vit')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    asked = len(hub.asked)
    assert fetch_file('hf:own/vit') == online and fetch_file(f'hf:own/vit@{commit}') == online
    with pytest.raises(
        ValueError, match=r'^own/other is not in the cache, .*\(HF_HUB_OFFLINE is set\): check'
    ):
        read_weights('hf:own/other')
    assert len(hub.asked) == asked


def test_a_connection_that_breaks_is_resumed(hub: Hub, model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add('own/vit', **{'model.safetensors': model})
    hub.cut = len(model) // 2 // 1024 * 1024
    monkeypatch.setattr(constants, 'DOWNLOAD_CHUNK_SIZE', 1024)
    assert fetch_file('hf:own/vit').path.read_bytes() == model
    assert [r for _, path, r, _ in hub.asked if r] == [f'bytes={hub.cut}-']


@pytest.mark.parametrize(
    ('name', 'sentence'),
    [
        (
            'hf:own/none',
            'repository own/none not found on the hub: check the name; if it is private, set HF_TOKEN',
        ),
        ('hf:own/gated', r'own/gated is gated: accept its terms at http.*/own/gated, and set HF_TOKEN'),
        ('hf:own/vit@v9', 'own/vit has no revision v9'),
        ('hf:own/vit', 'own/vit has no model.safetensors or pytorch_model.bin: .*such as hf:own/vit/big.pth'),
        ('hf:own', 'hf:own is not a hub name: use hf:owner/name'),
    ],
)
def test_what_cannot_be_had_is_one_sentence(hub: Hub, name: str, sentence: str) -> None:
    hub.add('own/vit', **{'big.pth': b'x', 'notes.txt': b'x'})
    hub.add('own/gated', **{'model.safetensors': b'x'})
    hub.gated.add('own/gated')
    with pytest.raises(ValueError, match=f'^{sentence}') as caught:
        read_weights(name)
    assert '\n' not in str(caught.value)


def test_the_token_of_the_environment_opens_what_is_gated(
    hub: Hub, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add('own/gated', **{'model.safetensors': model})
    hub.gated.add('own/gated')
    monkeypatch.setenv('HF_TOKEN', 'hf_secret')
    assert fetch_file('hf:own/gated').path.read_bytes() == model
    assert {token for *_, token in hub.asked} == {'Bearer hf_secret'}


def test_timms_names_are_pinned_with_their_license(hub: Hub, tmp_path: Path) -> None:
    name = 'vit_tiny_patch16_224.augreg_in21k'
    theirs = timm.create_model(name, num_classes=2)
    commit = hub.add(
        f'timm/{name}', **{'model.safetensors': blob(theirs.state_dict(), tmp_path / 't.safetensors')}
    )
    for given in (f'timm/{name}', f'timm/{name}@{commit}'):
        stored = read_weights(given)
        assert stored.source == stored.facts.base == f'timm/{name}@{commit}'
        assert (stored.facts.backbone, stored.facts.license) == (name, 'apache-2.0')
        assert torch.equal(stored.state['cls_token'], theirs.cls_token)
    assert load_backbone(None, f'timm/{name}').name == name
    with pytest.raises(ValueError, match=r'has no revision v9'):
        read_weights(f'timm/{name}@v9')


@pytest.fixture
def adapter(hub: Hub, model: bytes, tmp_path: Path) -> Path:
    """An adapter of weights of the hub, beside the report of its run."""
    hub.add('own/vit', **{'model.safetensors': model, 'README.md': readme('cc-by-nc-4.0')})
    vit, config = load_backbone(MODEL, 'hf:own/vit'), ExPLoRAConfig.parse('[L]-r4')
    vit.normalization = Normalization((100.0, 110.0, 90.0), (40.0, 41.0, 42.0))
    explora(vit, config)
    with torch.no_grad():
        for parameter in vit.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    save_adapter(tmp_path / 'run' / 'adapter.safetensors', vit, MODEL, config)
    (tmp_path / 'run' / 'report.json').write_text(json.dumps(REPORT))
    return tmp_path / 'run' / 'adapter.safetensors'


def equal(one: ViT, other: ViT) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_adapter_and_merged_model_go_to_the_hub_and_come_back(
    hub: Hub,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv('HF_TOKEN', 'hf_secret')
    merged = tmp_path / 'merged.safetensors'
    merge_adapter(adapter, 'hf:own/vit', merged)
    expected = load_backbone(None, 'hf:own/vit', adapter)
    with pytest.raises(SystemExit, match='0'):
        main(['push', str(adapter), 'me/adapter', '--private'])
    assert 'hf:me/adapter@' in capsys.readouterr().out
    name = push(merged, 'me/model')
    assert name == f'hf:me/model@{hub.commit("me/model", 0)}' and set(hub.commits['me/model'][0]) == {
        'model.safetensors',
        'README.md',
    }
    assert equal(load_backbone(None, 'hf:own/vit', 'hf:me/adapter'), expected)
    assert equal(load_backbone(None, name), expected)
    for repo, kind in (('me/adapter', 'adapter'), ('me/model', 'model')):
        with pytest.raises(SystemExit, match='0'):
            main(['pull', repo, str(tmp_path / kind)])
        assert sorted(p.name for p in (tmp_path / kind).iterdir()) == ['README.md', f'{kind}.safetensors']
    assert (tmp_path / 'adapter' / 'adapter.safetensors').read_bytes() == adapter.read_bytes()
    assert pull(name, tmp_path / 'again').read_bytes() == merged.read_bytes()


def test_the_card_carries_bands_normalization_licence_base_and_numbers(adapter: Path, tmp_path: Path) -> None:
    merged = tmp_path / 'run' / 'merged.safetensors'
    merge_adapter(adapter, 'hf:own/vit', merged)
    base = read_adapter(adapter)[0].base
    for file, relation in ((adapter, 'adapter'), (merged, 'finetune')):
        (tmp_path / 'card.md').write_text(card := model_card(file))
        assert metadata_load(tmp_path / 'card.md') == {
            'license': 'cc-by-nc-4.0',
            'base_model': 'own/vit',
            'base_model_relation': relation,
            'library_name': 'explora_geo',
            'tags': ['earth-observation', 'vision-transformer', 'explora'],
        }
        for text in (
            'red, green, blue',
            'green 110 ± 41',
            f'`{base}`',
            'cc-by-nc-4.0',
            'Adapting helps.',
            '[L]-r4',
        ):
            assert text in card
        assert '| k-NN | 73.2 | 79.7 | +6.6 (+4.2 to +8.9) |' in card
    assert '## Results' not in model_card(merged.rename(tmp_path / 'alone.safetensors'))


def test_push_refuses_in_one_sentence(
    hub: Hub,
    adapter: Path,
    base_file: Path,
    tmp_path: Path,
    refuse: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert 'the hub denied access to me/x: set HF_TOKEN' in refuse('push', adapter, 'me/x')
    monkeypatch.setenv('HF_TOKEN', 'hf_secret')
    assert 'does not specify backbone or bands' in refuse('push', base_file, 'me/x')
    assert 'report not found' in refuse('push', adapter, 'me/x', '--report', tmp_path / 'none.json')
    vit = load_backbone(MODEL, base_file)
    save_adapter(tmp_path / 'plain.safetensors', explora(vit, config := ExPLoRAConfig()), MODEL, config)  # type: ignore[arg-type]
    assert 'does not specify the license of its base weights' in refuse(
        'push', tmp_path / 'plain.safetensors', 'me/x'
    )
    assert 'me/x' not in hub.commits
    push(tmp_path / 'plain.safetensors', 'me/x', license='MIT')
    assert b'license: mit' in hub.commits['me/x'][0]['README.md']
    assert 'repository me/none not found on the hub' in refuse('pull', 'me/none', tmp_path / 'out')
    assert create_vit(MODEL).base == ''
