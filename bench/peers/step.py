"""A training step as people write it: PyTorch's own operators, every patch embedded and then gathered."""

# op=implementation of our own engine: embed-all-then-gather, SDPA, LayerNorm + Linear + BCE, separate AdamW and EMA.
# token_plan and info_nce have no `torch` form; their references are plain PyTorch.
EAGER = ",".join(
    [
        *(
            f"{op}=torch"
            for op in ("patch_embed", "layer_norm", "linear", "attention", "gelu", "token_bce", "adamw_ema")
        ),
        "token_plan=reference",
        "info_nce=reference",
    ]
)
