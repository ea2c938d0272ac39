"""Export a pre-trained source model: a quantized file and the lines of its model card."""

from pathlib import Path

import pandas as pd

from explora_geo.checkpoints import read_state, write_state
from explora_geo.checkpoints.files import QUANTIZATION, quantize_rows

from .tables.records import markdown_table

#: Excluded, as DINOv2's own files exclude the heads.
_HEADS = ('dino_head.', 'ibot_head.')


def export_source(run: Path, out: Path) -> str:
    """Quantize the backbone, and any decoder, of a full run; return loss and k-NN by epoch in Markdown."""
    state, metadata = read_state(run / 'model.safetensors')
    kept = {k: v for k, v in state.items() if not k.startswith(_HEADS)}
    write_state(out, quantize_rows(kept), {**metadata, **QUANTIZATION})
    metrics = pd.read_csv(run / 'metrics.csv')
    epochs = metrics.groupby('epoch').agg(
        steps=('step', 'max'),
        train_loss=('train_loss', 'mean'),
        val_loss=('val_loss', 'max'),
        knn=('val_knn', 'max'),
        gain=('val_knn_gain', 'max'),
    )
    header = ['epoch', 'steps', 'training loss', 'EuroSAT loss', 'EuroSAT k-NN', 'over random weights']
    lines = []
    for epoch, row in epochs.iterrows():
        measured = ['-' if pd.isna(v) else f'{v:.3f}' for v in (row.val_loss, row.knn, row.gain)]
        lines.append([str(int(str(epoch)) + 1), str(int(row.steps) + 1), f'{row.train_loss:.3f}', *measured])
    return '\n'.join(markdown_table(header, lines))
