"""The page: self-contained, small, escaped, and complete or without what is missing."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from explora_geo.evaluation.comparison import METHODS, RULE, Comparison, Measured, PairProtocol
from explora_geo.reports import page as page_module
from explora_geo.reports import write_report

from .browser import CHROMIUM, start

SECTIONS = ('scores', 'label-free', 'strength', 'features', 'neighbors', 'reconstructions', 'retention')
SECTIONS += ('about', 'training', 'cost', 'skipped', 'next')


class Page(HTMLParser):
    """Elements and text of a page.

    Attributes:
        elements: Names and attributes of all elements.
        words: All text outside style.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words, self._style, self.open = '', False, []  # type: ignore[var-annotated]
        self.source = path.read_text(encoding='utf-8')
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._style = tag == 'style'

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def handle_data(self, data: str) -> None:
        self.words += '' if self._style else data

    def having(self, name: str) -> list[str]:
        return [a[name] or '' for _, a in self.elements if name in a]


@pytest.fixture(scope='module')
def folder(whole: dict[str, Any], pictures: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp('run'), whole, pictures).parent


@pytest.fixture(scope='module')
def written(folder: Path) -> Page:
    return Page(folder / 'report.html')


def test_the_page_holds_every_section_and_is_small(written: Page) -> None:
    assert tuple(a['id'] for tag, a in written.elements if tag == 'section') == SECTIONS
    assert 50_000 < len(written.source.encode()) < page_module.LIMIT


def test_the_verdict_is_the_first_line(written: Page) -> None:
    body = written.source[written.source.index('<body>') :]
    first = re.sub(r'<[^>]+>', '', body).strip().splitlines()[0]
    text = 'Adapting helps: k\u2011NN\u00a0+6.0, linear probe\u00a0+4.0 points; few labels within noise.'
    assert first == text


def test_nothing_comes_from_elsewhere(written: Page) -> None:
    assert 'http' not in written.source and '//' not in re.sub(r'base64,[^"]*', '', written.source)
    assert all(value.startswith('data:image/') for value in written.having('src'))
    assert all(value.startswith(('#', 'data:,')) for value in written.having('href'))
    assert not {tag for tag, _ in written.elements} & {'script', 'iframe', 'object', 'embed', 'base', 'form'}
    assert not re.search(r'@import|url\((?!#)|srcset', written.source)


def test_every_picture_has_a_text(written: Page) -> None:
    images = [a for tag, a in written.elements if tag == 'img']
    assert len(images) > 100 and all((a.get('alt') or '').strip() for a in images)
    charts = [a for tag, a in written.elements if tag == 'svg']
    assert len(charts) == 3 + 2 and all((a.get('aria-label') or '').strip() for a in charts)
    assert 'k-NN: Source 69.0 %, Source, best block (5) 70.0 %' in (charts[0]['aria-label'] or '')


def test_names_are_text_not_markup(written: Page) -> None:
    assert '<script' not in written.source and written.words.count('<script>') >= 3
    assert 'Tile <script>alert("x")</script>&.tif' in written.having('alt')


def test_charts_on_a_page_do_not_collide(written: Page) -> None:
    ids = written.having('id')
    assert len(ids) == len(set(ids)) > 50
    targets = re.findall(r'(?:href="#|url\(#)([^")]+)', written.source)
    assert targets and set(targets) <= set(ids)


def test_colors_of_charts_follow_the_page(written: Page) -> None:
    charts = ''.join(re.findall(r'<svg.*?</svg>', written.source, re.S))
    assert not re.findall(r'(?:fill|stroke): #\w+', charts)
    used = set(re.findall(r'var\((--\w+)\)', written.source))
    for scheme in re.findall(r':root \{(.*?)\}', written.source, re.S):
        assert used - {'--tone'} <= set(re.findall(r'(--\w+):', scheme))


def test_the_json_is_plain_and_has_the_verdict(folder: Path, written: Page, tmp_path: Path) -> None:
    content = json.loads((folder / 'report.json').read_text(), parse_constant=pytest.fail)
    assert content['verdict']['outcome'] == 'helps' and content['curves'][1]['y'] == [0.69, None, 0.75]
    assert len(content['skipped']) == 61 and 'and 21 more' in written.words
    again = Page(write_report(tmp_path / 'again', content))
    assert [i for i in again.having('id') if i in SECTIONS] == [
        s for s in SECTIONS if s not in ('features', 'neighbors', 'reconstructions')
    ]


def test_of_the_commands_three_are_shown_as_they_are(written: Page) -> None:
    assert 'explora-geo probe data --weights w.safetensors' in written.words
    assert 'three' in written.words and 'four' not in written.words


@pytest.mark.parametrize('left', [*SECTIONS, None])
def test_what_is_missing_is_absent(report: dict[str, Any], tmp_path: Path, left: str | None) -> None:
    keys = {'label-free': 'label_free', 'training': 'curves'}
    wanted = {'archive': report['archive']} if left == 'about' else {}
    if left is not None and (key := keys.get(left, left)) in report:
        wanted = {key: report[key]}
    page = Page(write_report(tmp_path, wanted))
    found = [i for i in page.having('id') if i in SECTIONS]
    if left == 'scores':
        assert found == ['scores', 'about'] and 'Labels for scoring' in page.words
    else:
        assert found == ([left] if wanted else [])
    assert not re.search(r'\bNone\b(?! of these)', page.words) and 'not measured' not in page.words
    assert '<h1>' in page.source


def test_rivals_and_intervals_may_be_missing(tmp_path: Path) -> None:
    rows = [{'metric': 'knn', 'source': {'mean': 0.5}, 'adapted': {'mean': 0.6}}]
    page = Page(write_report(tmp_path, {'scores': {'rows': rows}}))
    assert 'best block' not in ''.join(w for w in page.words.split('the whitened source.')[1:])
    assert (
        '50.0' in page.words
        and ' to ' not in page.words.split('the whitened source.')[1].split('The numb')[0]
    )


def test_scores_of_a_comparison_are_shown_as_they_come(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def measured(accuracy: float) -> dict[str, Measured]:
        hits = rng.random((3, 400)) < accuracy
        return {m: Measured(hits, (accuracy,) * 3, ('block 2, C 0.1',) * 3) for m in METHODS}

    names = ('source', 'best_block', 'turns_source', 'adapted', 'turns_adapted', 'strength 0.5')
    models = {name: measured(0.5 + 0.05 * i) for i, name in enumerate(names)}
    protocol = PairProtocol(resamples=50)
    scores = Comparison(models, ('adapted',), (0.0, 0.5, 1.0), {'test': 400}, protocol).to_dict()
    page = Page(write_report(tmp_path, {'scores': scores, 'strength': scores['strength']}))
    assert page.words.strip().startswith('Adapting helps: k-NN +') and RULE in page.words
    assert 'Source, best block' in page.words and 'Adapted, mean of 4 turns' in page.words
    assert [i for i in page.having('id') if i in SECTIONS] == ['scores', 'strength', 'about']


@pytest.mark.parametrize('notation', ['[L]-r32', 'anchor-[L]-r32'])
def test_the_anchor_is_called_ours(report: dict[str, Any], tmp_path: Path, notation: str) -> None:
    report['adaptation'] = {'notation': notation, 'objective': 'anchor'}
    words = Page(write_report(tmp_path, report)).words
    assert 'Anchor [L]-r32 (ours, not ExPLoRA) from' in words
    assert "explora_geo's own objective, not part of ExPLoRA" in words and 'D-ExPLoRA' not in words


def test_a_page_that_is_too_large_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, 'LIMIT', 1000)
    with pytest.raises(ValueError, match='more than 1,000'):
        write_report(tmp_path / 'none', {})
    assert not (tmp_path / 'none').exists()


@pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium')
def test_a_browser_shows_it_without_a_request_or_an_error(folder: Path, written: Page) -> None:
    path = folder / 'report.html'
    with start() as browser:
        colors = set()
        for width, scheme in ((1200, 'light'), (390, 'dark')):
            browser.open(path, width, 800, scheme)
            colors.add(browser.evaluate('getComputedStyle(document.body).backgroundColor'))
            assert browser.evaluate('document.documentElement.scrollWidth') <= width
            broken = '[...document.images].filter(i => !i.complete || !i.naturalWidth).length'
            assert browser.evaluate('document.images.length') > 100 and browser.evaluate(broken) == 0
            fills = '[...document.querySelectorAll(".chart text")].map(t => getComputedStyle(t).fill)'
            used = set(browser.evaluate(fills))
            assert browser.evaluate('getComputedStyle(document.body).color') in used
            assert 'rgb(0, 0, 0)' not in used
            smallest = 'Math.min(...[...document.querySelectorAll(".chart text")].map(t => '
            smallest += 't.getBoundingClientRect().height))'
            assert browser.evaluate(smallest) > 9
        printed = browser.call('Page.printToPDF', printBackground=True)['data']
    assert len(colors) == 2 and printed.startswith('JVBERi0')  # %PDF-
    requests = [p['request']['url'] for method, p in browser.events if method == 'Network.requestWillBeSent']
    assert {u for u in requests if not u.startswith('data:')} == {path.resolve().as_uri()}
    bad = ('Log.entryAdded', 'Runtime.exceptionThrown', 'Runtime.consoleAPICalled', 'Network.loadingFailed')
    assert not [event for event in browser.events if event[0] in bad]


def test_small_feature_maps_are_pictures_of_their_patches(written: Page, pictures: dict[str, Any]) -> None:
    import base64
    import io

    colored = [a['src'] or '' for _, a in written.elements if a.get('class') == 'pixels']
    assert len(colored) == 2 * len(pictures['tiles'])
    image = Image.open(io.BytesIO(base64.b64decode(colored[0].partition(',')[2])))
    assert image.size == pictures['patches_source'].shape[2:0:-1] and min(image.size) >= 14


def test_a_short_run_stands_beside_the_adapter_made_beforehand_and_quoted_rivals(
    report: dict[str, Any], pictures: dict[str, Any], tmp_path: Path
) -> None:
    rows = report['scores']['rows']
    for r in rows:
        r['beside'] = {**r['adapted'], 'gain': r['gain']}
        del r['turns_source']
    others = [
        {'metric': r['metric'], 'turns_source': {'mean': 0.5, 'turns': 4}, 'whitened': {'mean': 0.4}}
        for r in rows
    ]
    report['quoted'] = {'source': 'results/full.json', 'command': 'explora-bench full', 'rows': others}
    report['adaptation'] |= {'short': True}
    report['strength'] = {**report['strength'], 'x': [0, 1], 'series': []}
    pictures |= {k.replace('adapted', 'beside'): v for k, v in pictures.items() if k.endswith('adapted')}
    page = Page(write_report(tmp_path / 'run', report, pictures))
    assert 'strength' not in {a['id'] for tag, a in page.elements if tag == 'section'}
    heads = re.findall(r'<th scope="col"[^>]*>([^<]*)<', page.source[: page.source.index('</table>')])
    assert heads[1:] == [
        'Source',
        'This short run',
        'Gain, points',
        'Ready-made adapter',
        'Source, best block',
        'Source, mean of 4 turns \N{DAGGER}',
        'Source, whitened \N{DAGGER}',
    ]
    assert 'measured with explora-bench full' in page.words
    trio = page.source[page.source.index('<div class="trio"') :]
    assert [*re.findall(r'<span>([^<]*)</span>', trio)[1:4]] == [
        'source',
        'this short run',
        'ready-made adapter',
    ]
