"""k-NN on fixed images of a source, the same for every encoder that is compared."""

from misplace.engine.data import open_evaluation
from misplace.engine.models import VisionTransformer

from .features import NUM_TEST, NUM_TRAIN, Encode, choose_images, extract
from .knn import knn, usable_ks

K = 20


def patch_mean(encoder: VisionTransformer) -> Encode:
    """The feature of an image for k-NN: the mean of its patch tokens, fp32 [B, D]."""
    device = encoder.cls_token.device
    return lambda images: encoder.embed(images.to(device))[1].mean(dim=1)


class KnnTask:
    """Fixed training and test images of a source, seen at `image_size` pixels. UserError as open_evaluation."""

    def __init__(self, source: str, image_size: int, num_train: int = NUM_TRAIN, num_test: int = NUM_TEST):
        self.train, test = open_evaluation(source)
        self.test = self.train if test is None else test
        self.image_size = image_size
        self.indices = choose_images(self.train, test, num_train=num_train, num_test=num_test)
        self.k = min(K, len(self.indices[0]))

    def accuracy(self, encode: Encode, ks: tuple[int, ...]) -> dict[int, float]:
        """Top-1, in [0, 1], for each k that the training part can serve."""
        train, train_labels = extract(encode, self.train, self.indices[0], self.image_size)
        test, test_labels = extract(encode, self.test, self.indices[1], self.image_size)
        ks = usable_ks(ks, len(train)) or (len(train),)
        return knn(train, train_labels, test, test_labels, ks=ks)

    def top1(self, encode: Encode) -> float:
        """Top-1 at k = 20, or at all training images where there are fewer."""
        return next(iter(self.accuracy(encode, (self.k,)).values()))
