"""Figures of a run, as PNG files drawn by matplotlib."""

from .classes import draw_calibration as draw_calibration
from .classes import draw_class_accuracy as draw_class_accuracy
from .classes import draw_confusion as draw_confusion
from .curves import draw_curves as draw_curves
from .curves import draw_learning_rate as draw_learning_rate
from .grids import wrap as wrap
from .grids import write_batch as write_batch
from .grids import write_grid as write_grid
from .network import draw_embedding as draw_embedding
from .network import draw_heat_maps as draw_heat_maps
from .run import prediction_caption as prediction_caption
from .run import write_figures as write_figures
