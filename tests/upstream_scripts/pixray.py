"""The inner module, membership in the list of models, a folder for downloads."""

import torch
from clip import clip
from clip.simple_tokenizer import SimpleTokenizer

for name in ("RN50x4", "ViT-B/16"):
    assert name in clip.available_models()
    model = (
        clip.load(name, jit=False, download_root="models")[0]
        .requires_grad_(False)
        .eval()
        .to("cuda")
    )
    assert sum(p.numel() for p in model.parameters()) > 0
    assert model.encode_text(clip.tokenize("a fox", truncate=True).to("cuda")).float().ndim == 2
assert SimpleTokenizer().encode("a fox") and torch.is_tensor(model.logit_scale.exp())
