"""GGUF's types below four bits: codes and scales of blocks, exactly.

IQ1, IQ2 and IQ3 look runs of 4 or 8 values up in a grid; TQ1 and TQ2 hold -1, 0 and 1; MXFP4 is OCP's 4-bit
floating point (Microscaling Formats 1.0). In all of them a value is an integer times a float32 scale without
rounding, so that a type is here what `codes` says of it. Layouts are in formats.py, after ggml-common.h.

Shapes: B blocks, L values of a block, G groups with a scale of their own inside a block, R runs of a block.
"""

from __future__ import annotations

import zlib
from base64 import b85decode
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Codes = NDArray[np.int8]
Blocks = NDArray[Any]  # structured array, one element a block

# The values that a grid's points are made of; those of IQ1 are eight times what they count.
_LEVELS: Mapping[str, tuple[int, ...]] = {
    "IQ2_XXS": (8, 25, 43),
    "IQ2_XS": (8, 25, 43),
    "IQ2_S": (8, 25, 43),
    "IQ3_XXS": (4, 12, 20, 28, 36, 44, 52, 62),
    "IQ3_S": (1, 3, 5, 7, 9, 11, 13, 15),
    "IQ1_S": (-8, 0, 8),
}

# A grid is some of all points, in the order of the numbers that their levels are the digits of (the first is
# the lowest). Stored is which: a bit for each number, deflated.
_CHOSEN: Mapping[str, str] = {
    "IQ2_XXS": (
        "c-nPRORj`4470MbdWwiuj~R8vF<3s$DPNNQV8mEdDvh1mfzMz4@MsNM4-kL~Dg?0u3Z<Q}s#5&i%a^YL7=qILyw)W4Cso8iR"
        "nlpCLd`c4Du;C<RlH?aajd+e<FY7)k8>WSTt@47wX1jPqB41q=2e+&9hy;#r#nzQ(d`wV2I-N(E<X_7hks$x7)Do8!;TEvZc"
        "dv+$;Bf*s-;99+U-&7)=?KnsoS&M%ZZjW8ztGaG<oin^)>q~!#84@<5Q?C;cAe-jqH$lW6s<jvF<nQc*Z$~yKl@H%B$)D{-`"
        "Y{-_v~Aze0c0{sHUUCpi"
    ),
    "IQ2_XS": (
        "c-mc2ORj`4470L|dWwh@;*?QWh*MOoP)|Aew9xme83;|{*iP^L>UVu^J$f&9<)%0;rYcZH@zkTcz*1-`0#F4vd)cqIa~EY0S"
        "(m36us~sl4e+uqnt+xnD5p1ifdk&k2^cqyDKl&hVwLuN#<u{Y#82-D2r2AS*#~B;6>b%zZ?$An2Qav5OyP;?IjC1*OUa>YNX"
        "BOJs!l*N%2M9ag1pZ#qbS<pDODX)Ys@FiGwcn?g7z}ZUJ85J?WuXe7)kq!xj_MC=sehbo`f6hw91-EjVApg;SBK(#S-ctqy5"
        "bslAAu_xaBeODLPcR%XL4jpOCvsj1dP@iIwgyVBr<uBI!nKMuUZZ1qQNNP<bV}FGN4KvRv{ky>(2~*Gt;x6q$P={6Cb#@3Df"
        "xx_wWh`vWo0U*P"
    ),
    "IQ2_S": (
        "c-n1JOKt@r42!agI0c#&;*=39#3>LflvCCTO#7-9jpk=;Y=fB%TefG%OIlXuE_Fz<Ougf=%xu>+l3Bq8hyjg~lMrunmZ<Wy`"
        "~YGiEi#3On5vBd<vmKZSi%aW(psKWGWlAsphF>8rUC+;ZDfa(=s@_F#i0yss$-8fvv#Vf@jNV{kuiVLgA~66J1A2@4RVJKUx"
        "H}IH-$JpaZ^g})pmKjjd>lmojtPqGOJ!xqXVV(I)s3f1HneH&<4|id_Zsqi~d9|fZw$~1nHWO$bgs-@JBFei6qb36Asxo<#s"
        "4;BRhd~d<sfnbhG0<$t^)oE$@gK%zO1xyELVB%s1k`FAKZeJ@WjCtPZ6s4%XC=!ChZ<C{I5t%jB|RQ$q0^0H^%ZVVCdNfJ9H"
        "PfzZdmWSrg_I({bPgptf%^rJMcpz`hTS7u<>s9rVvW-WSa`T|j+oGk"
    ),
    "IQ3_XXS": (
        "c-l=-K?=h#3{ye}VW$qZd!FLL9+1HvWO^EVh1sdkoaHp#R7#szmgHo6m{j1}>~2z^o7e*jro|>W6f;suxGq5ThwwrH-tdy3S"
        "=*8VCKknJ;ww~xN=C-Lt2kc1f`n?I#<sN&{qc;xi`rsIog^>xCi>0vO72GEj+P?`#G30*;dkafo0(MD70~26E5oy)Fh-PS2J"
        "_iYxE!Gh>5A3e2Aw8l#Lz*UZ2xyz&!sE!Xy7=t?heopubnm$;UMyR4j1Wf!f;*xLWT6+u!rw*Hy!tqyDZ17JdzPtf@!~_J7y"
        "rh&WtZi"
    ),
    "IQ3_S": (
        "c-k#dK}rKb5Ud?m7(7iN59ovqtiR~U2pdlmS^v`sIn3TR;sZue5Z@6$Amj-`@D=vV+J}a&>aMEU{rNq)_mDQ1)6rXa`g-zl6"
        ")-xV9&D<-%sLtw(&E+K!8jAZAn=FIh`{BX?s3iZ9eL!0y{saQwa{i<M_rV8i?Gza!ZNf5Tx$=B>&%}&x2aFnb2>I1DZfG3@e"
        "JJ?w}Hf9jj>U<u}qaX$V(Q{%bJZi0qBwX8+P2=0D&xpG^*kpx3aC_+^woo1gDy;frCMb5s>PfCelExhl@Z5=M_J&lZwQK<TI"
        "aOt1Nd_t_Z4Nkqr(Irw~QLK*sjOloy2EUU#sN3YKfvLC9pG+yhGG#kO><KBF1{I~{B$E!8AqIlE}-BNQAl`R33C|JNFjj93D"
        "(#a!oZudm_a(c~OHe<Yb)Y4R?AVbTWv01QA~hX"
    ),
    "IQ1_S": (
        "c-k#eO>0z16uqyx#k83y_qA0qE*kA7fk#%6iL;cd<W&+S(JE7AEBc6nlGQ*KX*Z#@1057+gows$6w-}Cbfte_m;o2UY|_#*V"
        "Za~*x^U%6T=`Mm&aUdhx#ygF&eKOplgaU0)cQ?aLaWb`!=%}lC@i-gZEZ5CFdhU_><`D{U2pdIZAiiRBZ^Tjpc--1mjt-&r-"
        "O_l7bZy)3*%3zRUeyRXfJ~s5?<5PM<UK4aB<I3L}>n{hnc{+>K$G67mn>zvR$=UOtZPa7LUsmQWQ2bN)ou!Kj_yfb~LQyR=n"
        "ku)`P+=g=?+GNRyF#AueD^;Yg67k)HG=(os>Uh!rG~(gRxZza2HhyPsM)=qh9|ehXUldkU;_wA!C+2Fv`rcq!34!0Fqz%0;&"
        "7#XeAmBu`}t6ci#>+3WlSwzITy{$0C$RU8lhlWkibbyz6nxOL=l|4%yAAJ4G^LV^S*V!(*CwdNU%)Qrh$#q9cyW*tq|@QQ}j"
        "896#XTv`6q5lhc&*LLPVeEGcad$xT4&D*b^FV9bJ+^}ih*A`2jX2rIue$9q9{)`S!jt!g=X1D{vGEMnukjj}Wcvs!oqc~_d6"
        "1@aP1V3Bvcjc9uWpgt6=l#-;vm1GpU-HX*>(|GJ!F2C{R9{8qA7trFiLFJ0VD+S2Ny_0+jiaiUvPbU!Gt<44HyL$nQ%A{iI)"
        "xZW(;0iU=zRoe)YSg8LFF!L&Ei&Q)FngSxd==b)ez8IIEAq?gCPR1z1`cE#svx$dBcgrdMr~`+vY{G*{j)LdH7J(;|V_S3+r"
        "Eqj0{aUGZ~5`z3=#nUT2ypkIbf^7Qd%#dKF#22&cWI$B=(k{y*i-P-%7a6aqltG8tC11XWn$8wuQe)#`Rb$ezM@h+=MX6ehv"
        "4>@KW-1MD8)wE"
    ),
}
_MXFP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)  # doubled


def decode(kind: str, b: Blocks) -> Floats:
    """The values of blocks, float32 [B, L]."""
    q_BL, d_BG = codes(kind, b)
    values_BGN: Floats = d_BG[..., None] * q_BL.reshape(*d_BG.shape, -1).astype(np.float32)
    return values_BGN.reshape(q_BL.shape)


def codes(kind: str, b: Blocks) -> tuple[Codes, Floats]:
    """Integers [B, L] and scales [B, G] whose products are the values of blocks of a type of CODERS."""
    return _CODERS[kind](b)


@cache
def _grid(kind: str) -> Codes:
    """The points of a grid -> [points, 4 or 8]."""
    levels = np.array(_LEVELS[kind], np.int8)
    bits = np.unpackbits(np.frombuffer(zlib.decompress(b85decode("".join(_CHOSEN[kind]))), np.uint8))
    width = 4 if len(levels) == 8 else 8
    digits = np.flatnonzero(bits)[:, None] // len(levels) ** np.arange(width) % len(levels)
    return levels.take(digits)


def _signed(magnitude_BRN: Codes, signs_BM: NDArray[Any]) -> Codes:
    """Negative where the bit is set; the bytes of `signs` hold eight values each -> [B, L]."""
    negative_BL = np.unpackbits(signs_BM, axis=-1, bitorder="little").astype(np.bool_)
    q_BL = magnitude_BRN.reshape(negative_BL.shape)
    return np.where(negative_BL, -q_BL, q_BL)


def _seven_signs(words_BG: NDArray[Any]) -> NDArray[np.uint8]:
    """Four times seven signs from the low 28 bits; every eighth makes their number even -> bytes [B, 4 G]."""
    return _with_parity(words_BG[..., None] >> np.arange(0, 28, 7, dtype=np.uint32) & 127)


def _with_parity(seven: NDArray[Any]) -> NDArray[np.uint8]:
    bits: NDArray[np.uint8] = seven.astype(np.uint8)
    odd: Any = bits ^ bits >> 4
    odd ^= odd >> 2
    odd ^= odd >> 1
    signs: NDArray[np.uint8] = bits | odd << np.uint8(7)
    return signs.reshape(len(bits), -1)


def _nibbles(scales_BN: NDArray[Any]) -> Floats:
    return np.stack((scales_BN & 15, scales_BN >> 4), -1).reshape(len(scales_BN), -1).astype(np.float32)


def _d(b: Blocks) -> Floats:
    return b["d"].astype(np.float32)[:, None]


def _iq2_xxs(b: Blocks) -> tuple[Codes, Floats]:
    index = np.ascontiguousarray(b["qs"][..., 0]).view(np.uint8)
    words_BG = b["qs"][..., 1]
    scale_BG = (words_BG >> 28).astype(np.float32) + np.float32(0.5)
    return _signed(_grid("IQ2_XXS")[index], _seven_signs(words_BG)), _d(b) * scale_BG * np.float32(0.25)


def _iq2_xs(b: Blocks) -> tuple[Codes, Floats]:
    q_BL = _signed(_grid("IQ2_XS")[b["qs"] & 511], _with_parity(b["qs"] >> 9))
    return q_BL, _d(b) * (_nibbles(b["scales"]) + np.float32(0.5)) * np.float32(0.25)


def _high_bits(qs_BR: NDArray[Any], qh_BM: NDArray[Any], shifts: range, mask: int) -> NDArray[np.uint16]:
    """Indices of more than eight bits: low ones in `qs`, the rest of neighbouring ones in a word of `qh`."""
    high = qh_BM[..., None] >> np.array(shifts, qh_BM.dtype) & mask
    index_BR: NDArray[np.uint16] = qs_BR | high.reshape(qs_BR.shape).astype(np.uint16) << 8
    return index_BR


def _iq2_s(b: Blocks) -> tuple[Codes, Floats]:
    index_BR = _high_bits(b["qs"], b["qh"], range(0, 8, 2), 3)
    q_BL = _signed(_grid("IQ2_S")[index_BR], b["signs"])
    return q_BL, _d(b) * (_nibbles(b["scales"]) + np.float32(0.5)) * np.float32(0.25)


def _iq3_xxs(b: Blocks) -> tuple[Codes, Floats]:
    scale_BG = (b["signs"] >> 28).astype(np.float32) + np.float32(0.5)
    q_BL = _signed(_grid("IQ3_XXS")[b["qs"]], _seven_signs(b["signs"]))
    return q_BL, _d(b) * scale_BG * np.float32(0.5)


def _iq3_s(b: Blocks) -> tuple[Codes, Floats]:
    index_BR = _high_bits(b["qs"], b["qh"], range(8), 1)
    q_BL = _signed(_grid("IQ3_S")[index_BR], b["signs"])
    return q_BL, _d(b) * (1 + 2 * _nibbles(b["scales"]))


def _shifted(index_BR: NDArray[Any], down: NDArray[np.bool_]) -> Codes:
    """IQ1: a point of the grid, an eighth more or, where `down`, less -> in eighths, [B, L]."""
    q = _grid("IQ1_S")[index_BR] + np.where(down, -1, 1).astype(np.int8)[..., None]
    q_BL: Codes = q.reshape(len(q), -1)
    return q_BL


def _iq1_s(b: Blocks) -> tuple[Codes, Floats]:
    qh_BG = b["qh"]
    scale_BG = (2 * (qh_BG >> 12 & 7) + 1).astype(np.float32)
    index_BR = _high_bits(b["qs"], qh_BG, range(0, 12, 3), 7)
    down_BR = np.repeat((qh_BG & 0x8000) != 0, 4, axis=-1)
    return _shifted(index_BR, down_BR), _d(b) * scale_BG * np.float32(0.125)


def _iq1_m(b: Blocks) -> tuple[Codes, Floats]:
    """The block's scale is spread over the highest four bits of four words, whose others hold four each."""
    words = b["scales"]
    d_B = (words >> 12 << np.arange(0, 16, 4, dtype=np.uint16)).sum(-1).astype("<u2").view("<f2")
    scale_BG = (2 * (words[..., None] >> np.arange(0, 12, 3, dtype=np.uint16) & 7) + 1).reshape(-1, 16)
    nibbles = np.stack((b["qh"] & 15, b["qh"] >> 4), -1).reshape(b["qs"].shape)
    index_BR = b["qs"] | (nibbles & 7).astype(np.uint16) << 8
    d_BG = d_B.astype(np.float32)[:, None] * scale_BG.astype(np.float32) * np.float32(0.125)
    return _shifted(index_BR, (nibbles & 8) != 0), d_BG


def _tq1_0(b: Blocks) -> tuple[Codes, Floats]:
    """Five base-3 digits in a byte: 32 and 16 bytes with five each, and four bytes with four."""
    parts = [(b["qs"][:, :32], 5), (b["qs"][:, 32:], 5), (b["qh"], 4)]
    digits = [_trits(bytes_BN, n).reshape(len(b), -1) for bytes_BN, n in parts]
    return np.concatenate(digits, -1).astype(np.int8) - np.int8(1), _d(b)


def _trits(bytes_BN: NDArray[Any], n: int) -> NDArray[np.uint16]:
    powers = 3 ** np.arange(n, dtype=np.uint16)[:, None]
    shifted = (bytes_BN[:, None] * powers).astype(np.uint8)
    digits: NDArray[np.uint16] = shifted.astype(np.uint16) * np.uint16(3) >> np.uint16(8)
    return digits


def _tq2_0(b: Blocks) -> tuple[Codes, Floats]:
    pairs = b["qs"].reshape(-1, 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    return pairs.reshape(-1, 256).astype(np.int8) - np.int8(1), _d(b)


def _mxfp4(b: Blocks) -> tuple[Codes, Floats]:
    """Codes are twice the values, so that the scale of exponent e is 2^(e - 128)."""
    nibbles_BL = np.concatenate((b["qs"] & 15, b["qs"] >> 4), -1)
    d_B1 = np.ldexp(np.float32(1), b["e"].astype(np.int32) - 128)[:, None]
    return _MXFP4_VALUES[nibbles_BL], d_B1


_CODERS: Mapping[str, Callable[[Blocks], tuple[Codes, Floats]]] = {
    "IQ2_XXS": _iq2_xxs, "IQ2_XS": _iq2_xs, "IQ2_S": _iq2_s, "IQ3_XXS": _iq3_xxs, "IQ3_S": _iq3_s,
    "IQ1_S": _iq1_s, "IQ1_M": _iq1_m, "TQ1_0": _tq1_0, "TQ2_0": _tq2_0, "MXFP4": _mxfp4,
}  # fmt: skip
CODERS = tuple(_CODERS)
