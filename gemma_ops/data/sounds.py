"""Sound files: their facts, and their samples as Gemma 4 hears them (16 kHz, one channel).

WAV is read here, without any package; FLAC, OGG and MP3 need `soundfile`, which is imported when one is met. Other
rates are converted by a windowed sinc, phase by phase: the same bytes give the same samples on every machine.
"""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_ops.data.pictures import UnreadableError
from gemma_ops.errors import MachineError
from gemma_ops.family.media import RATE

Samples = npt.NDArray[np.float32]
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE  # formats of a WAV file, as mmreg.h numbers them
_ZEROS = 24  # zero crossings of the sinc on each side
_ROLLOFF = 0.945  # of the lower of the two Nyquist frequencies; the Kaiser window needs the rest to fall off
_BETA = 12.0
_MAGIC = {b"fLaC": "flac", b"OggS": "ogg", b"ID3": "mp3"}


@dataclass(frozen=True)
class _Wav:
    form: int
    channels: int
    rate: int
    bits: int
    start: int
    frames: int


def sound_facts(data: bytes) -> tuple[str, int]:
    """Return the file ending, and how many samples at 16 kHz the sound has.

    Raises UnreadableError, and MachineError for a type that needs `soundfile` where that is not installed.
    """
    if data[:4] == b"RIFF":
        wav = _wav(data)
        return "wav", converted(wav.frames, wav.rate)
    ending = _ending(data)
    file = _soundfile(data, ending)
    return ending, converted(file.frames, file.samplerate)


def sound(data: bytes) -> Samples:
    """Return the samples, float32 in [-1, 1], shape (samples,), channels averaged, at 16 kHz. Raises as `facts`."""
    if data[:4] == b"RIFF":
        wav = _wav(data)
        found, rate = _frames(data, wav), wav.rate
    else:
        file = _soundfile(data, _ending(data))
        found, rate = file.read(dtype="float32", always_2d=True), file.samplerate
    return resample_sound(found.mean(axis=1, dtype=np.float64), rate)


def converted(frames: int, rate: int) -> int:
    """Return how many samples at 16 kHz so many at another rate become."""
    return math.ceil(frames * RATE / rate)


def resample_sound(samples: npt.NDArray[Any], rate: int) -> Samples:
    """Resample one channel to 16 kHz with a Kaiser-windowed sinc below the lower Nyquist frequency, exact for
    constants.

    Each of the up to 16,000 / gcd phases of the ratio is one filter, applied to strided windows of the input.
    """
    if rate == RATE or len(samples) == 0:
        return np.asarray(samples, dtype=np.float32)
    divisor = math.gcd(rate, RATE)
    up, down = RATE // divisor, rate // divisor
    cutoff = _ROLLOFF * min(1.0, up / down)
    half = math.ceil(_ZEROS / cutoff)
    count = converted(len(samples), rate)
    padded = np.concatenate([np.zeros(half), samples, np.zeros(half + down + 1)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    taps = np.arange(-half, half + 1)
    out = np.empty(count, dtype=np.float32)
    for phase in range(min(up, count)):
        first, rest = divmod(phase * down, up)
        places = taps - rest / up
        inside = np.clip(1 - (places / half) ** 2, 0, None)
        kernel = np.sinc(cutoff * places) * np.i0(_BETA * np.sqrt(inside)) * (np.abs(places) <= half)
        here = len(range(phase, count, up))
        out[phase::up] = windows[first : first + down * here : down][:here] @ (kernel / kernel.sum())
    return out


def _ending(data: bytes) -> str:
    if data[:2] in (b"\xff\xfb", b"\xff\xf3", b"\xff\xf2"):
        return "mp3"
    found = next((name for magic, name in _MAGIC.items() if data.startswith(magic)), None)
    if found is None:
        raise UnreadableError("it is no sound that can be read: give WAV, FLAC, OGG or MP3")
    return found


def _soundfile(data: bytes, ending: str) -> Any:
    try:
        import soundfile
    except ImportError as error:
        raise MachineError(
            f"{ending} files need the package soundfile, which is not installed",
            "pip install 'gemma-ops[multimodal]', or convert them to WAV",
        ) from error
    try:
        return soundfile.SoundFile(io.BytesIO(data))
    except Exception as error:  # LibsndfileError, which can only be named once the package is there
        raise UnreadableError(f"the sound can't be decoded: {error}") from None


def _wav(data: bytes) -> _Wav:
    """Read the header of a WAV file: chunks of a name, a length and so many bytes (padded to even)."""
    if data[8:12] != b"WAVE":
        raise UnreadableError("it is a RIFF file, but not WAVE")
    place, form = 12, None
    while place + 8 <= len(data):
        name, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        place += 8
        if name == b"fmt " and size >= 16 and place + size <= len(data):
            code, channels, rate, _, _, bits = struct.unpack("<HHIIHH", data[place : place + 16])
            if code == _EXTENSIBLE and size >= 26:
                code = int.from_bytes(data[place + 24 : place + 26], "little")
            form = (code, channels, rate, bits)
        elif name == b"data" and form is not None:
            return _checked(*form, place, size, len(data))
        place += size + size % 2
    raise UnreadableError("the WAV file has no sound in it, or is cut off")


def _checked(code: int, channels: int, rate: int, bits: int, start: int, size: int, length: int) -> _Wav:
    if (code, bits) not in {(_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32), (_FLOAT, 64)}:
        raise UnreadableError(f"the WAV file has {bits}-bit samples of format {code}; give PCM or float")
    if not channels or not rate:
        raise UnreadableError("the WAV file has no channels or no rate")
    if size in (0, 0xFFFFFFFF):  # written by a program that could not go back and say
        size = length - start
    if start + size > length:
        raise UnreadableError(f"the WAV file is cut off: {length - start} of {size} bytes of sound")
    return _Wav(code, channels, rate, bits, start, size // (channels * bits // 8))


def _frames(data: bytes, wav: _Wav) -> npt.NDArray[np.float64]:
    """Return samples in [-1, 1], shape (frames, channels)."""
    count = wav.frames * wav.channels
    raw = memoryview(data)[wav.start : wav.start + count * wav.bits // 8]
    if wav.form == _FLOAT:
        found = np.frombuffer(raw, dtype=f"<f{wav.bits // 8}").astype(np.float64)
        if not np.isfinite(found).all():
            raise UnreadableError("the WAV file holds samples that are no numbers")
    elif wav.bits == 8:  # the only unsigned one
        found = (np.frombuffer(raw, dtype=np.uint8).astype(np.float64) - 128) / 128
    elif wav.bits == 24:
        wide = np.zeros((count, 4), dtype=np.uint8)
        wide[:, 1:] = np.frombuffer(raw, dtype=np.uint8).reshape(count, 3)
        found = wide.view("<i4").ravel().astype(np.float64) / 2**31
    else:
        found = np.frombuffer(raw, dtype=f"<i{wav.bits // 8}").astype(np.float64) / 2 ** (wav.bits - 1)
    return found.reshape(wav.frames, wav.channels)
