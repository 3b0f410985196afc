"""Teach ``service.py`` real handwritten digits, and watch how well it tells others apart.

The data are the 1,797 images of 8 by 8 pixels that come with scikit-learn. Four fifths are sent as
examples, at so many requests a second; the others are kept, and once a second the service is asked
which digits these are.
"""

import argparse
import json
import sys
import time
from itertools import count

import httpx
import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Array = npt.NDArray[np.float64]


class Teacher:
    """Sends examples, and counts those that were acknowledged."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self.acknowledged = 0

    def teach(self, images: Array, labels: Array) -> None:
        """Send examples; when the queue is full, again after as long as the service asks for."""
        both = zip(images.tolist(), labels.tolist(), strict=True)
        body = {"examples": [{"pixels": pixels, "label": label} for pixels, label in both]}
        while (answer := self.client.post("/examples", json=body)).status_code == 429:
            seconds = float(answer.headers["Retry-After"])
            print(f"the queue is full: waiting for {seconds:g} s", flush=True)
            time.sleep(seconds)
        self.acknowledged += answer.raise_for_status().json()["accepted"]

    def examine(self, images: Array, labels: Array) -> float:
        """Give the share of the images that the service gets right."""
        answer = self.client.post("/predict", json={"images": images.tolist()})
        return float(np.mean(answer.raise_for_status().json()["labels"] == labels))

    def report(self, images: Array, labels: Array) -> None:
        """Print how many examples were sent, and how well others are told apart."""
        share = self.examine(images, labels) * 100
        others = f"{share:.1f} % of {len(labels)} others right"
        print(f"{self.acknowledged:6} digits taught, {others}", flush=True)

    def teach_all(self, rate: float, size: int, passes: int) -> None:
        """Send all digits so many times, at this rate, and print what comes of it."""
        digits = load_digits()
        x_train, x_test, y_train, y_test = train_test_split(
            digits.data, digits.target, test_size=0.2, random_state=0, stratify=digits.target
        )
        self.report(x_test, y_test)
        requests = count(1)
        began = reported = time.monotonic()
        for _ in range(passes):
            for start in range(0, len(x_train), size):
                self.teach(x_train[start : start + size], y_train[start : start + size])
                now = time.monotonic()
                if now - reported >= 1:
                    self.report(x_test, y_test)
                    reported = now
                time.sleep(max(0, began + next(requests) / rate - time.monotonic()))
        self.report(x_test, y_test)
        print(json.dumps(self.client.get("/status").raise_for_status().json(), indent=2))


def main(url: str, rate: float, size: int, passes: int) -> int:
    """Teach the service, and give the exit code: 1 when it went away meanwhile."""
    # The service is on this machine: no proxy of the environment is asked.
    with httpx.Client(base_url=url, trust_env=False) as client:
        teacher = Teacher(client)
        try:
            teacher.teach_all(rate, size, passes)
            return 0
        except httpx.HTTPStatusError as error:
            print(f"the service refuses ({error.response.status_code}): {error.response.text}")
        except httpx.TransportError as error:
            print(f"the service at {url} is gone: {error!r}")
        except KeyboardInterrupt:
            print("stopped")
        finally:
            print(f"{teacher.acknowledged} examples were acknowledged")
    return 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Teach the service real handwritten digits.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the service is")
    parser.add_argument("--rate", type=float, default=50, help="requests a second (50)")
    parser.add_argument("--size", type=int, default=4, help="examples in a request (4)")
    parser.add_argument("--passes", type=int, default=3, help="how often each digit is sent (3)")
    arguments = parser.parse_args()
    if min(arguments.rate, arguments.size, arguments.passes) <= 0:
        parser.error("--rate, --size and --passes are to be more than 0")
    sys.exit(main(arguments.url, arguments.rate, arguments.size, arguments.passes))
