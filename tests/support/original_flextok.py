"""Tensors of the original FlexTok under our names."""

RENAMED = {
    "enc_patch_emb.patch_proj": "patches.project",
    "enc_posemb_module.posembs": "patches.positions",
    "enc_register_module.registers": "registers",
    "enc_to_latents.proj": "head",
    "enc_transformer.": "",
    "dec_from_latents.proj": "codes",
    "dec_registers_posemb_module.posembs": "positions",
    "dec_nested_dropout.dropout_mask_token": "dropped",
    "dec_latent_dropout.nullcond": "unconditional",
    "dec_noise_patch_emb.patch_proj": "patches.project",
    "dec_patches_posemb_module.posembs": "patches.positions",
    "dec_time_embedder.mlp.0": "time.first",
    "dec_time_embedder.mlp.2": "time.second",
    "dec_transformer.": "",
    "dec_to_patches.adaLN_modulation.1": "head.modulation",
    "dec_to_patches.proj": "head.project",
    ".adaLN_modulation.1": ".modulation",
    ".attn.wq": ".attention.query",
    ".attn.wk": ".attention.key",
    ".attn.wv": ".attention.value",
    ".attn.proj": ".attention.out",
    ".mlp.fc1": ".mlp.gate",
    ".mlp.fc3": ".mlp.up",
    ".mlp.fc2": ".mlp.down",
}


def renamed(state):
    """The tensors under `state.` of a recorded file."""
    ours = {}
    for name, value in state.items():
        if name.startswith("state."):
            name = name.removeprefix("state.").removeprefix("module_dict.")
            for old, new in RENAMED.items():
                name = name.replace(old, new)
            ours[name] = value[0, 0].T if name == "positions" else value
    return ours
