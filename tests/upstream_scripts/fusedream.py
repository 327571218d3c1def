"""The scale of the logits, cut texts, differentiable augmentation, a generator's random numbers."""

import clip
import torch

assert torch.cuda.is_available(), "CUDA is needed"
torch.cuda.set_device(0)
torch.cuda.synchronize()
generator = torch.Generator(device="cuda").manual_seed(3)
z = torch.randn(1, 8, generator=generator, device="cuda").requires_grad_()
net = torch.nn.Linear(8, 3 * 224 * 224).cuda()
perceptor, _ = clip.load("ViT-B/32", device="cuda")
text = perceptor.encode_text(clip.tokenize("a fox " * 90, truncate=True).cuda())
image = torch.nn.functional.normalize(perceptor.encode_image(net(z).view(1, 3, 224, 224)), dim=-1)
(perceptor.logit_scale.exp() * image @ text.t()).sum().backward()
assert z.grad.abs().sum() > 0
