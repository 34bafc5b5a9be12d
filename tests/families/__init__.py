"""All families of the parity tests; a new one is a file beside these and a line here."""

from families import (
    deepfloyd_if,
    flux,
    kandinsky,
    pixart_sigma,
    sana,
    sd3,
    sd_upscale,
    sdxl,
    stable_diffusion,
    unclip,
    unconditional,
)
from families.case import FamilyCase

CASES: dict[str, FamilyCase] = {
    case.name: case
    for case in (
        stable_diffusion.CASE,
        deepfloyd_if.BASE,
        deepfloyd_if.CASE,
        sd_upscale.CASE,
        sd_upscale.IF_THREE,
        flux.CASE,
        flux.SCHNELL,
        pixart_sigma.CASE,
        sana.CASE,
        sana.FLOW,
        kandinsky.CASE,
        kandinsky.LEARNED_VARIANCE,
        sd3.CASE,
        sd3.WITHOUT_T5,
        sdxl.CASE,
        unclip.CASE,
        unconditional.DDIM,
        unconditional.DDPM,
    )
}
