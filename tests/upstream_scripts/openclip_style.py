"""What CLIPAG's notebooks and open_clip's README do with open_clip."""

import open_clip
import torch

model, _, preprocess = open_clip.create_model_and_transforms(
    "ViT-B/32", pretrained="weights/CLIPAG_ViTB32.pt", precision="amp", device="cuda"
)
tokenizer = open_clip.get_tokenizer("ViT-B-32")
model.eval()
tokens = tokenizer(["a fox " * 100]).to("cuda")
assert tokens.dtype == torch.int64 and tokens.shape == (1, 77)
x = torch.rand(2, 3, 224, 224).cuda()
x.requires_grad = True
with torch.cuda.amp.autocast():
    features = model.encode_image(x)
features /= features.clone().norm(dim=-1, keepdim=True)
features[:, 0].sum().backward()
assert x.grad.abs().sum() > 0
unit = model.encode_image(x, normalize=True)
assert torch.allclose(unit.norm(dim=-1), torch.ones(2))
images, texts, scale = model(x, tokens)
assert images.shape[1] == texts.shape[1] and scale.ndim == 0
only, transform = open_clip.create_model_from_pretrained("hf-hub:somebody/some-clip")
assert len(transform.transforms) == 5 and only.visual.input_resolution == 224
