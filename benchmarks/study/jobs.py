"""The jobs of the study, by group, in the order of their worth."""

from dataclasses import replace
from itertools import product

from .adapting import Recipe
from .running import Job

#: Views in about 1, 10 and 60 minutes of two cores without AVX-512 (10 views/s of the anchor).
LENGTHS = (640, 6_400, 38_400)
OTHERS = {
    'eurosat': ('aid', 'natural'),
    'aid': ('eurosat', 'natural'),
    'natural': ('eurosat', 'aid'),
    'naip': (),
}

ANCHOR = Recipe()
D = Recipe(objective='D', photometry='dinov2')
LIGHT = replace(D, photometry='light')
MEAN = replace(LIGHT, options={'token': 'avg'})

ANCHORS = {
    'anchor': ANCHOR,
    'anchor-w0': replace(ANCHOR, arguments={'whitening': 0.0}),
    'anchor-w1': replace(ANCHOR, arguments={'whitening': 1.0}),
    'anchor-w0.75': replace(ANCHOR, arguments={'whitening': 0.75}),
    'anchor-w0.25': replace(ANCHOR, arguments={'whitening': 0.25}),
    'anchor-oriented': replace(ANCHOR, arguments={'oriented': True}),
}


def _beside(weight: float, whitening: float = 0.5, recipe: Recipe = LIGHT) -> Recipe:
    weights = {'patch_weight': 0.5 * weight, 'centered_weight': 2 * weight, 'mean_weight': 2 * weight}
    return replace(recipe, arguments={'whitening': whitening, **weights})


DISTILLERS = {
    'D': D,
    'D-light': LIGHT,
    'D-plain': replace(D, photometry='none'),
    'D-mean': MEAN,
    'D-slow': replace(LIGHT, rate=1e-4),
    'D-lora': replace(LIGHT, adaptation='[]-r32'),
    'D-two': replace(LIGHT, adaptation='[L-1,L]-r32'),
    'D-warm': replace(LIGHT, head_warmup=0.3),
    'D-mean-lora': replace(MEAN, adaptation='[]-r32'),
    'D-noibot': replace(MEAN, options={'token': 'avg', 'ibot_weight': 0.0}),
    'D+anchor1': _beside(1.0),
    'D+anchor3': _beside(3.0),
    'D+anchor10': _beside(10.0),
    'D-mean+anchor1': _beside(1.0, recipe=MEAN),
    'D-mean+anchor3': _beside(3.0, recipe=MEAN),
    'D-mean+anchor3-w0': _beside(3.0, 0.0, recipe=MEAN),
}

#: What trains, for tables of arms.
ARMS = {'explora': '[L]-r32', 'lora': '[]-r32', 'unfreeze': '[L]', 'full': 'full'}


def harm() -> list[Job]:
    """The default and its like, three lengths, four domains, three seeds."""
    jobs = []
    for seed, name in ((0, 'anchor'), (1, 'anchor'), (2, 'anchor'), (0, 'anchor-w0'), (0, 'anchor-w1')):
        for views, domain in product(LENGTHS, OTHERS):
            if domain == 'naip' and seed:
                continue
            seen = OTHERS[domain] if views > 640 else ()
            jobs.append(Job('harm', name, 'depth6', domain, ANCHORS[name], views, seed, transfer=seen))
    return [*jobs, Job('harm', 'anchor-oriented', 'depth6', 'naip', ANCHORS['anchor-oriented'], 6_400)]


def search() -> list[Job]:
    """D in many forms, with and without the anchor beside it, good recipes and bad."""
    jobs = [
        Job('search', name, 'depth6', domain, recipe, views, strengths=(0.25, 0.5) if views > 6400 else ())
        for views in LENGTHS[1:]
        for (name, recipe), domain in product(DISTILLERS.items(), ('eurosat', 'aid'))
    ]
    jobs += [
        Job('search', name, 'depth6', domain, ANCHORS[name], 6_400)
        for name, domain in product(('anchor-w0.25', 'anchor-w0.75'), ('eurosat', 'aid'))
    ]
    bad = {
        'anchor-fast': replace(ANCHOR, rate=1e-2),
        'D-fast': replace(LIGHT, rate=1e-2),
        'D-faster': replace(LIGHT, rate=3e-3),
        'M': Recipe(objective='M', rate=1.5e-3, lora=1.0),
    }
    jobs += [
        Job('search', name, 'depth6', domain, recipe, 6_400)
        for (name, recipe), domain in product(bad.items(), ('eurosat', 'aid'))
    ]
    return jobs


def long() -> list[Job]:
    """As many views as a GPU allows, on the whole archive, for the adapter that ships."""
    wide = replace(ANCHOR, batch=256)
    settings = {
        'long': (wide, 153_600),
        'long-fast': (replace(wide, rate=1e-3), 153_600),
        'long-w0.75': (replace(wide, arguments={'whitening': 0.75}), 153_600),
        'long-w1': (replace(wide, arguments={'whitening': 1.0}), 153_600),
        'longer': (wide, 614_400),
        'longer-w0.75': (replace(wide, arguments={'whitening': 0.75}), 614_400),
    }
    return [
        Job('long', name, 'depth6', 'eurosat', recipe, views, save=True, transfer=OTHERS['eurosat'])
        for name, (recipe, views) in settings.items()
    ]


def lengths() -> list[Job]:
    """Who peaks when, and who forgets: what trains x steps of 64 images x objective."""
    jobs = []
    for seed in range(3):
        for objective, recipe in (('anchor', ANCHOR), ('D', LIGHT)):
            for (arm, adaptation), steps, domain in product(
                ARMS.items(), (60, 300, 1200), ('eurosat', 'aid')
            ):
                rate = recipe.rate / 5 if arm == 'full' else recipe.rate
                job = replace(recipe, adaptation=adaptation, rate=rate)
                jobs.append(
                    Job(
                        'lengths',
                        f'{objective}-{arm}',
                        'depth6',
                        domain,
                        job,
                        steps * 64,
                        seed,
                        transfer=OTHERS[domain],
                    )
                )
    return jobs


def images() -> list[Job]:
    """Few unlabeled images: 200, 2,000 and all, at 150 steps."""
    return [
        Job(
            'images',
            f'anchor-{arm}',
            'depth6',
            domain,
            replace(ANCHOR, adaptation=notation),
            9_600,
            seed,
            images=count,
        )
        for seed in range(3)
        for (arm, notation), count, domain in product(
            (('explora', '[L]-r32'), ('full', 'full')), (200, 2_000, 0), ('eurosat', 'aid')
        )
    ]


def second() -> list[Job]:
    """A supervised source whose last block is whole, and others."""
    jobs = []
    for source in ('vit_ti16', 'distilled'):
        for seed in range(2):
            for name, recipe in {
                'anchor': ANCHOR,
                'anchor-w0': ANCHORS['anchor-w0'],
                'D': replace(D, rate=1e-3),
                'D+anchor1': replace(_beside(1.0), rate=1e-3),
            }.items():
                for views, domain in product(LENGTHS[1:], ('eurosat', 'aid')):
                    jobs.append(
                        Job('second', name, source, domain, recipe, views, seed, transfer=OTHERS[domain])
                    )
    return jobs


GROUPS = {f.__name__: f for f in (long, harm, search, second, lengths, images)}
