"""The row of docs/families.md's worked example."""

from carrara_models.families import CLIP_TEXT_ENCODER, VAE_DECODER, Family, PartPlan

ROW = {
    "LatentConsistencyModelPipeline": Family(
        name="latent-consistency",
        parts={
            "text-encoder": CLIP_TEXT_ENCODER,
            "generator": PartPlan(
                role="generator",
                components={"unet": ("UNet2DConditionModel",), "scheduler": ("LCMScheduler",)},
                module="families.example_part",
            ),
            "decoder": VAE_DECODER,
        },
    ),
}
