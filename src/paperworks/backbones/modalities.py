"""Sound, video, point clouds and series as images, so that an image network takes them unchanged (2311.15599, section 4).

Only the first layer's number of input channels follows the modality; the network behind it is the same class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paperworks.errors import InputError

# --- series -----------------------------------------------------------------------------------------------------------


def fold_series(embedding: Tensor) -> Tensor:
    """Embedded steps [N, L, D] as one grey image [N, 1, s, s], rows in memory order; L * D must be a square s * s."""
    count, length, dim = embedding.shape
    side = math.isqrt(length * dim)
    if side * side != length * dim:
        raise InputError(
            f"a series of {length} steps of width {dim} has {length * dim} numbers, which is no square; pad the steps"
        )
    return embedding.reshape(count, 1, side, side)


def unfold_series(features: Tensor, dim: int) -> Tensor:
    """A feature map [N, D, h, w] as tokens [N, h * w, dim] in memory order, without a transpose: as the released model."""
    if features[0].numel() % dim:
        raise InputError(f"a feature map of {list(features.shape[1:])} does not divide into tokens of width {dim}")
    return features.reshape(len(features), -1, dim)


# --- sound ------------------------------------------------------------------------------------------------------------


SPEECH_MEAN, SPEECH_STD = -6.845978, 5.5654526
"""of log mel energies of Speech Commands V2, as the authors print them"""


def audio_image(spectrogram: Tensor, bands: int | None = None) -> Tensor:
    """Log mel energies [N, T, F] as grey images [N, 1, F, T]. bands: the F that a network was trained with, where it counts."""
    if spectrogram.ndim != 3:
        raise InputError(f"spectrograms are [N, time, mel], not {list(spectrogram.shape)}")
    if bands is not None and spectrogram.shape[2] != bands:
        raise InputError(f"spectrograms with {spectrogram.shape[2]} mel bands, not {bands}; log_mel(bands={bands}) makes them")
    return spectrogram.transpose(1, 2)[:, None]


def log_mel(
    waves: Tensor,
    rate: int = 16000,
    bands: int = 128,
    window: float = 0.025,
    hop: float = 0.010,
    preemphasis: float = 0.97,
) -> Tensor:
    """Waves [N, samples] in [-1, 1] -> log energies [N, T, bands] as Kaldi computes them.

    Frames without their mean, each sample less `preemphasis` times the one before it, Hann windows, power spectrum, triangular
    mel filters.
    """
    length, step = int(window * rate), int(hop * rate)
    if waves.ndim != 2 or waves.shape[1] < length:
        raise InputError(f"waves are [N, samples] with at least {length} samples at {rate} Hz, not {list(waves.shape)}")
    size = 1 << (length - 1).bit_length()
    frames = waves.unfold(1, length, step)
    frames = frames - frames.mean(-1, keepdim=True)
    before = torch.cat((frames[..., :1], frames[..., :-1]), -1)  # a frame's first sample stands before itself
    frames = (frames - preemphasis * before) * torch.hann_window(length, periodic=False)
    power = torch.fft.rfft(frames, size).abs().square()
    return (power @ mel_filters(bands, size, rate).T).clamp(min=torch.finfo(torch.float32).eps).log()


def standardised(energies: Tensor, mean: float = SPEECH_MEAN, std: float = SPEECH_STD) -> Tensor:
    """(energies - mean) / (2 std), with the statistics of the training data."""
    return (energies - mean) / (2 * std)


def masked(energies: Tensor, generator: torch.Generator, frequency: int = 48, time: int = 48) -> Tensor:
    """Energies [N, T, F] in training: in each sample up to `time` steps and up to `frequency` bands in a row become 0
    (1904.08779, before `standardised`)."""
    for axis, widest in ((1, time), (2, frequency)):
        total = energies.shape[axis]
        widths, places = torch.rand(2, len(energies), 1, generator=generator)
        widths = (widths * min(widest, total)).floor()
        begins = (places * (total - widths)).floor()
        index = torch.arange(total)
        hidden = (index >= begins) & (index < begins + widths)
        energies = energies.masked_fill(hidden.unsqueeze(3 - axis).to(energies.device), 0.0)
    return energies


def mel_filters(bands: int, size: int, rate: int, low: float = 20.0) -> Tensor:
    """Triangles [bands, size / 2 + 1], evenly spaced on the mel scale 1127 ln(1 + f / 700) from `low` Hz to half the rate."""

    def mel(frequency: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(frequency / 700.0)

    ends = mel(torch.tensor([low, rate / 2.0]))
    centres = torch.linspace(float(ends[0]), float(ends[1]), bands + 2)
    bins = mel(torch.arange(size // 2 + 1) * rate / size)
    left, middle, right = centres[:-2, None], centres[1:-1, None], centres[2:, None]
    return torch.minimum((bins - left) / (middle - left), (right - bins) / (right - middle)).clamp(min=0)


# --- video ------------------------------------------------------------------------------------------------------------


def mosaic(video: Tensor) -> Tensor:
    """[N, C, n * n, h, w] -> [N, C, n * h, n * w]: frames as tiles of one image, row by row (our reading of the paper)."""
    count, channels, frames, height, width = video.shape
    side = math.isqrt(frames)
    if side * side != frames:
        raise InputError(f"{frames} frames do not tile a square; take 4, 9 or 16")
    tiles = video.reshape(count, channels, side, side, height, width)
    return tiles.permute(0, 1, 2, 4, 3, 5).reshape(count, channels, side * height, side * width)


# --- points -----------------------------------------------------------------------------------------------------------

VIEWS: Sequence[tuple[float, float, float]] = (
    (0, 0, 0.5),
    (0.5, 0, 0.5),
    (1, 0, 0.5),
    (1.5, 0, 0.5),
    (1.25, -0.25, 0.5),
    (1.25, 0.25, 0.5),
    (1.75, -0.25, 0.5),
    (1.75, 0.25, 0.5),
    (0, -0.5, 0.5),
    (0, 0.5, 0.5),
)
"""angles about x, y and z as multiples of pi, in the released order"""

DISTANCE = 1.4
"""of the eye along z"""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def rotations(views: int) -> Tensor:
    """[views, 3, 3] with row vectors turned by `points @ rotation`: transposes of Rx Ry Rz of the first fixed views."""
    if not 1 <= views <= len(VIEWS):
        raise InputError(f"{views} views: there are 1 to {len(VIEWS)}")
    found = []
    for angles in VIEWS[:views]:
        x, y, z = (angle * math.pi for angle in angles)
        about_x = torch.tensor([[1, 0, 0], [0, math.cos(x), -math.sin(x)], [0, math.sin(x), math.cos(x)]])
        about_y = torch.tensor([[math.cos(y), 0, math.sin(y)], [0, 1, 0], [-math.sin(y), 0, math.cos(y)]])
        about_z = torch.tensor([[math.cos(z), -math.sin(z), 0], [math.sin(z), math.cos(z), 0], [0, 0, 1]])
        found.append((about_x @ about_y @ about_z).T)
    return torch.stack(found).float()


def viewed(points: Tensor, turns: Tensor) -> Tensor:
    """[N, P, 3] under each of V rotations, moved away from the eye: [N * V, P, 3], a cloud's views side by side."""
    turned = points[:, None] @ turns
    turned = turned - turned.new_tensor([0.0, 0.0, -DISTANCE])
    return turned.flatten(0, 1)


class PointProjection(nn.Module):
    """Clouds as pictures: features of each point and its neighbours, added up on the pixels it falls on (2208.02812).

    neighbours: k of the graph. obj_size: pixels that the larger extent of a view takes of img_size. mean, std: of the images
    that the network behind it was trained on. atten_fusion: the authors' switch for fusing points by attention, which is not
    part of this class.
    """

    def __init__(
        self,
        neighbours: int = 32,
        dim: int = 8,
        graph_dim: int = 64,
        image_dim: int = 64,
        img_size: int = 224,
        obj_size: int = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        atten_fusion: bool = False,
    ):
        super().__init__()
        if atten_fusion:
            raise InputError("atten_fusion=True: points are only added up on a pixel here; take atten_fusion=False")
        if not 3 < obj_size <= img_size:
            raise InputError(f"obj_size {obj_size}: an object takes at least 4 pixels and at most the image's {img_size}")
        self.neighbours, self.img_size, self.obj_size = neighbours, img_size, obj_size
        self.input_trans = nn.Conv1d(3, dim, 1)
        self.graph_layer = nn.Sequential(
            nn.Conv2d(2 * dim, graph_dim, 1, bias=False), nn.GroupNorm(4, graph_dim), nn.LeakyReLU(0.2)
        )
        self.proj_layer = nn.Conv1d(graph_dim, graph_dim, 1)
        self.img_block = nn.Sequential(_BasicBlock(graph_dim), nn.Conv2d(graph_dim, image_dim, 1))
        self.img_layer = nn.Conv2d(image_dim, 3, 1)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)

    mean: Tensor
    std: Tensor

    def forward(self, original: Tensor, turned: Tensor) -> Tensor:
        """original, turned: [N, P, 3], the cloud and a view of it -> normalised images [N, 3, img_size, img_size]."""
        check_points(original, self.neighbours)
        features = self.input_trans(original.transpose(1, 2))
        edges = self._edges(original, features)
        features = self.proj_layer(self.graph_layer(edges).amax(-1))
        image = self._scatter(features, self._pixels(turned))
        image = torch.sigmoid(self.img_layer(self.img_block(image)))
        return (image - self.mean) / self.std

    def _edges(self, points: Tensor, features: Tensor) -> Tensor:
        """[N, 2 D, P, k]: differences to the k nearest points (the point itself among them) and the point's own features."""
        nearest = torch.cdist(points, points).topk(self.neighbours, largest=False).indices
        dim, total = features.shape[1:]
        chosen = torch.gather(features[:, :, None].expand(-1, -1, total, -1), 3, nearest[:, None].expand(-1, dim, -1, -1))
        own = features[..., None].expand_as(chosen)
        return torch.cat((chosen - own, own), 1)

    def _pixels(self, turned: Tensor) -> Tensor:
        """[N, P, 2]: row and column of each point; the larger extent fills obj_size, the view is centred."""
        flat = turned[..., :2]
        low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
        cell = (high - low).amax(-1, keepdim=True) / (self.obj_size - 3)
        if not bool((cell > 0).all()):
            raise InputError("a view of a point cloud has no extent: all its points lie on one line of sight; turn the cloud")
        places = ((flat - low) / cell).long()
        extent = places.amax(1, keepdim=True)
        return places + (self.img_size - 1 - extent) // 2

    def _scatter(self, features: Tensor, places: Tensor) -> Tensor:
        """Each point's features on the 3 x 3 pixels around it, added up: [N, D, img_size, img_size]."""
        count, dim, _ = features.shape
        canvas = features.new_zeros(count, dim, self.img_size * self.img_size)
        for row in (-1, 0, 1):
            for column in (-1, 0, 1):
                index = (places[..., 0] + row) * self.img_size + places[..., 1] + column
                canvas.scatter_add_(2, index[:, None].expand(-1, dim, -1), features)
        return canvas.view(count, dim, self.img_size, self.img_size)


class _BasicBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(x + y)


class PointHead(nn.Module):
    """Feature maps of V views [N * V, C, h, w] -> logits [N, classes]: side by side on channels, mean, LayerNorm, Linear."""

    def __init__(self, features: int, classes: int, views: int):
        super().__init__()
        self.views = views
        self.norm = nn.LayerNorm(features)
        self.linear = nn.Linear(features, classes)

    def forward(self, maps: Tensor) -> Tensor:
        if len(maps) % self.views:
            raise InputError(f"{len(maps)} maps are no whole number of clouds with {self.views} views each")
        return self.linear(self.norm(maps.mean((2, 3)).view(len(maps) // self.views, -1)))


def check_points(points: Tensor, neighbours: int) -> None:
    if points.ndim != 3 or points.shape[2] != 3:
        raise InputError(f"point clouds are [N, points, 3], not {list(points.shape)}")
    if points.shape[1] < neighbours:
        raise InputError(f"a cloud of {points.shape[1]} points has no {neighbours} neighbours; take a smaller number")
    if not bool(torch.isfinite(points).all()):
        raise InputError("a point cloud holds numbers that are not finite")
    if not bool(((points.amax(1) - points.amin(1)).amax(-1) > 0).all()):
        raise InputError("a point cloud has no extent: all its points are one")
