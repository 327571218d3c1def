"""The networks that CLIP's towers are made of."""

from .resnet import AttentionPool2d as AttentionPool2d
from .resnet import Bottleneck as Bottleneck
from .resnet import ModifiedResNet as ModifiedResNet
from .vit import Attention as Attention
from .vit import LayerNorm as LayerNorm
from .vit import QuickGELU as QuickGELU
from .vit import ResidualAttentionBlock as ResidualAttentionBlock
from .vit import Transformer as Transformer
from .vit import VisionTransformer as VisionTransformer
from .vit import exporting as exporting
from .vit import hooked as hooked
