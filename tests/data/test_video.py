"""Videos are read as a player shows them: turned, whole, evenly spaced; what cannot be read so is refused by name."""

import os
import struct

import av
import numpy as np
import pytest

from dydiff_dist.data.video import decode_video, decoded_bytes, read_video

CONTAINERS = {
    "a.mp4": ("libx264", "yuv444p"),
    "a.mov": ("libx264", "yuv444p"),
    "a.mkv": ("libx264", "yuv444p"),
    "a.avi": ("mjpeg", "yuvj420p"),
    "a.gif": ("gif", "rgb8"),
    "a.ts": ("libx264", "yuv420p"),
}


def write_video(path, frames, rate=10, times=None, codec="libx264", pixels="yuv444p", options=None):
    """Encodes (H, W, 3) frames; ``times`` are frame numbers at ``rate``."""
    scheduling = os.sched_getscheduler(0), os.sched_getparam(0)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pixels
        if codec == "libx264":
            stream.options = {"crf": "0", "preset": "ultrafast"}
        for number, pixels_HWC in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels_HWC, "rgb24")
            frame.pts = number if times is None else times[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    # SVT-AV1 gives the thread that calls it real-time priority where it may, and all that the thread starts inherits it
    os.sched_setscheduler(0, *scheduling)


def corner(bright=255):
    """A frame (48, 64) with a bright top left corner."""
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:12, :16] = bright
    return frame


def noise(count=20):
    return list(np.random.default_rng(0).integers(0, 256, (count, 48, 64, 3), dtype=np.uint8))


def set_display_matrix(path, matrix):
    """Writes (a, b, c, d) into the track header of an mp4 file."""
    data = bytearray(path.read_bytes())
    place = data.find(b"tkhd") + 4 + 40
    a, b, c, d = (int(value * 65536) for value in matrix)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("matrix", "shape", "corner_at"),
    [
        ((0, 1, -1, 0), (64, 48), (0, -1)),  # a quarter turn clockwise, as upright phones write
        ((0, -1, 1, 0), (64, 48), (-1, 0)),
        ((-1, 0, 0, -1), (48, 64), (-1, -1)),
        ((-1, 0, 0, 1), (48, 64), (0, -1)),  # mirrored, as front cameras write
        ((0, 1, 1, 0), (64, 48), (0, 0)),
    ],
)
def test_the_tracks_turn_is_applied(tmp_path, matrix, shape, corner_at):
    write_video(tmp_path / "a.mp4", [corner()] * 3)
    set_display_matrix(tmp_path / "a.mp4", matrix)
    for frame in (*read_video(tmp_path / "a.mp4").frames, *decode_video((tmp_path / "a.mp4").read_bytes())):
        bright = {place for place in ((0, 0), (0, -1), (-1, 0), (-1, -1)) if frame[place].min() > 250}
        assert frame.shape == (*shape, 3) and bright == {corner_at}


def test_a_turn_that_is_no_quarter_is_refused(tmp_path):
    write_video(tmp_path / "a.mp4", [corner()] * 3)
    set_display_matrix(tmp_path / "a.mp4", (0.8, 0.6, -0.6, 0.8))
    with pytest.raises(ValueError, match="only quarter turns are read"):
        read_video(tmp_path / "a.mp4")


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_video_that_is_cut_off_is_refused_whatever_its_container(tmp_path, name, share):
    codec, pixels = CONTAINERS[name]
    # The header of an mp4 file stands at its front, as in files made for the web.
    options = {"movflags": "faststart"} if name in ("a.mp4", "a.mov") else {}
    write_video(tmp_path / name, noise(), codec=codec, pixels=pixels, options=options)
    whole = read_video(tmp_path / name)
    assert len(whole.frames) == 20 and whole.frames_per_sec == 10
    assert decoded_bytes(tmp_path / name) == 20 * 48 * 64 * 3
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match="cut off"):
        read_video(tmp_path / name)


def test_an_mp4_cut_between_two_frames_is_refused(tmp_path):
    write_video(tmp_path / "a.mp4", noise(), options={"movflags": "faststart"})
    with av.open(str(tmp_path / "a.mp4")) as container:
        end = container.streams.video[0].index_entries[12].pos
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[:end])
    with pytest.raises(ValueError, match=r"it is cut off after 12 frames|cannot be decoded: .* cut off"):
        read_video(tmp_path / "a.mp4")


def write_sound(path, cover=None):
    """A second of silence, with a cover picture if there is one."""
    with av.open(str(path), "w") as container:
        sound = container.add_stream("mp3" if path.suffix == ".mp3" else "aac", rate=44100, layout="mono")
        picture = None
        if cover is not None:
            picture = container.add_stream("mjpeg", rate=1)
            picture.height, picture.width, picture.pix_fmt = *cover.shape[:2], "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
            container.mux(picture.encode(av.VideoFrame.from_ndarray(cover, "rgb24")))
            container.mux(picture.encode(None))
        size = sound.codec_context.frame_size or 1152
        for number in range(20):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, size), np.float32), "fltp", "mono")
            silence.sample_rate, silence.pts = 44100, number * size
            container.mux(sound.encode(silence))
        container.mux(sound.encode(None))


@pytest.mark.parametrize(("name", "cover"), [("a.mp4", None), ("a.mp3", corner())])
def test_sound_without_pictures_is_named(tmp_path, name, cover):
    write_sound(tmp_path / name, cover)
    for read in (read_video, decoded_bytes):
        with pytest.raises(ValueError, match="no video track, only audio"):
            read(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"no video at all", bytes(4096)])
def test_what_is_no_video_is_named_in_one_line(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(ValueError, match="cut off, damaged or no video") as caught:
        read_video(tmp_path / "a.mp4")
    assert "\n" not in str(caught.value)


def positions(clip):
    """Column of the block in each frame."""
    return [int(np.argmax(frame[0, :, 0] > 128)) for frame in clip.frames]


def moving(count):
    """A block that starts two columns further to the right in each frame."""
    return [np.roll(corner(), 2 * number, axis=1) for number in range(count)]


def test_fps_takes_the_frames_nearest_in_time(tmp_path):
    write_video(tmp_path / "a.mp4", moving(20), rate=30)
    assert read_video(tmp_path / "a.mp4").frames_per_sec == 30
    clip = read_video(tmp_path / "a.mp4", fps=10)
    assert clip.frames_per_sec == 10 and positions(clip) == [0, 6, 12, 18, 24, 30, 36]
    # 0, 0.08, 0.16 ... s are frames 0, 2.4, 4.8, 7.2, 9.6, 12, 14.4, 16.8
    assert positions(read_video(tmp_path / "a.mp4", fps=12.5)) == [2 * n for n in (0, 2, 5, 7, 10, 12, 14, 17)]
    with pytest.raises(ValueError, match="its 30 frames a second are fewer than --fps 60"):
        read_video(tmp_path / "a.mp4", fps=60)


def test_a_video_that_pauses_is_refused_unless_a_rate_is_given(tmp_path):
    write_video(tmp_path / "a.mp4", moving(6), times=[0, 1, 2, 6, 7, 8])
    with pytest.raises(ValueError, match=r"0.1 to 0.4 s apart; give --fps"):
        read_video(tmp_path / "a.mp4")
    assert positions(read_video(tmp_path / "a.mp4", fps=10)) == [0, 2, 4, 4, 4, 6, 6, 8, 10]


def test_times_in_milliseconds_give_the_stated_rate(tmp_path):
    write_video(tmp_path / "a.mkv", moving(6), rate=30)
    clip = read_video(tmp_path / "a.mkv")
    assert len(clip.frames) == 6 and clip.frames_per_sec == 30
