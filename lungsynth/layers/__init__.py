"""Layer on layer: nodules placed and overlaid on lungs, as recipes of a catalogue and a small library of assets.

`assets` (what is stored) -> `presence`, `groups` (what is drawn) -> `lung_shape`, `placement`, `plan` (what fits, and
what is kept) -> `catalogue` (recipes) -> `composite`, `render` (images), `dataset` (PyTorch; the only module that
imports torch).
"""

from lungsynth.layers.assets import Asset
from lungsynth.layers.catalogue import Catalogue, Recipe, make_recipe, read_catalogue, write_catalogue
from lungsynth.layers.composite import LungLayer, Overlay, overlay
from lungsynth.layers.groups import GroupSettings, Member, NoduleGroup, draw_groups
from lungsynth.layers.library import AssetLibrary
from lungsynth.layers.lung_shape import Box, LungShape
from lungsynth.layers.patch import NodulePatch
from lungsynth.layers.placement import NodulePlacement, Resolution, resolve
from lungsynth.layers.plan import Part, Plan, plan, plan_parts
from lungsynth.layers.presence import PresencePrior, analytic_presence, fit_presence
from lungsynth.layers.render import Annotation, Rendered, Renderer, render
from lungsynth.layers.rules import PlacementRules, Verdict, read_rules
from lungsynth.layers.stamp import Stamp, make_stamp
from lungsynth.layers.texture import LungTexture, measure_texture

__all__ = [
    "Annotation",
    "Asset",
    "AssetLibrary",
    "Box",
    "Catalogue",
    "GroupSettings",
    "LungLayer",
    "LungShape",
    "LungTexture",
    "Member",
    "NoduleGroup",
    "NodulePatch",
    "NodulePlacement",
    "Overlay",
    "Part",
    "PlacementRules",
    "Plan",
    "PresencePrior",
    "Recipe",
    "Rendered",
    "Renderer",
    "Resolution",
    "Stamp",
    "Verdict",
    "analytic_presence",
    "draw_groups",
    "fit_presence",
    "make_recipe",
    "make_stamp",
    "measure_texture",
    "overlay",
    "plan",
    "plan_parts",
    "read_catalogue",
    "read_rules",
    "render",
    "resolve",
    "write_catalogue",
]
