"""Small SAMs with random weights, excited so that masks, scores and stability differ, as folders on disk."""

from pathlib import Path
from typing import Any

import torch

SIDE, WIDTH = 64, 32
_PROMPT = {"hidden_size": WIDTH, "image_size": SIDE, "patch_size": 16}
_DECODER = {
    "hidden_size": WIDTH, "mlp_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "iou_head_hidden_dim": WIDTH,
}  # fmt: skip
_HIERA = {
    "model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [SIDE, SIDE],
    "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64],
    "num_attention_heads_per_stage": [1, 1, 2, 2], "window_size_per_stage": [4, 2, 4, 2],
    "global_attention_blocks": [3], "window_positional_embedding_background_size": [4, 4],
}  # fmt: skip
_SAM2_VISION = {
    "backbone_config": _HIERA, "backbone_channel_list": [64, 32, 16, 8],
    "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]], "fpn_hidden_size": WIDTH,
}  # fmt: skip
_SAM_VISION = {
    "hidden_size": 16, "output_channels": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": SIDE, "patch_size": 16, "mlp_dim": 32, "window_size": 2, "global_attn_indexes": [1],
    "num_pos_feats": WIDTH // 2,
}  # fmt: skip


def made(kind: str, seed: int = 0) -> Any:
    """Return transformers' network of a kind: sam or sam2."""
    import transformers

    torch.manual_seed(seed)
    if kind == "sam2":
        config = transformers.Sam2Config(
            vision_config={"model_type": "sam2_vision_model", **_SAM2_VISION},
            prompt_encoder_config=_PROMPT,
            mask_decoder_config=_DECODER,
        )
        network: Any = transformers.Sam2Model(config)
    else:
        prompt = {**_PROMPT, "image_embedding_size": SIDE // 16}
        network = transformers.SamModel(
            transformers.SamConfig(
                vision_config=_SAM_VISION, prompt_encoder_config=prompt, mask_decoder_config=_DECODER
            )
        )
    return excited(network).eval()


def excited(network: Any) -> Any:
    """Make masks and predicted IoUs of random weights differ from prompt to prompt."""
    decoder = network.mask_decoder
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.6 / parameter[0].numel() ** 0.5)
        for mlp in decoder.output_hypernetworks_mlps:
            mlp.proj_out.weight.mul_(250)
            mlp.proj_out.bias.fill_(-20)
        for up in (decoder.upscale_conv1, decoder.upscale_conv2):  # smooth: no chequers
            up.weight.copy_(2 * up.weight.mean((2, 3), keepdim=True).expand_as(up.weight))
        decoder.iou_prediction_head.proj_out.weight.mul_(8)
    return network


def save(folder: Path, kind: str, seed: int = 0) -> Path:
    """Write config.json and model.safetensors, as transformers does."""
    made(kind, seed).save_pretrained(folder)
    return folder
