"""Cards of the data sets and models that come with the package, and the models themselves."""

from __future__ import annotations

from pathlib import Path

MODELS = Path(__file__).parent / "models"


def bundled() -> dict[str, Path]:
    """Name -> folder of every model that comes with the package."""
    if not MODELS.is_dir():
        return {}
    return {
        folder.name: folder for folder in sorted(MODELS.iterdir()) if (folder / "manifest.json").is_file()
    }
