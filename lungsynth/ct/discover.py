"""The CT series of all sources with their masks, annotations and patients, and what every file was taken for.

All sources are one whole: images, masks, annotations and tables find each other in whatever source they lie, and the
order of the sources changes nothing. What a file is, `lungsynth.ct.file_kinds` decides; which mask belongs to which
image, `pairing`; whose a scan is, `patients`. A mask without an image, an annotation without a scan and a file that is
taken for nothing are problems. A scan with marks that could not be used has no normal slices (`SeriesFiles.unread`).
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

from lungsynth.ct.annotations import TableHead, read_luna16_annotations, read_table, table_head
from lungsynth.ct.dicom_series import DicomFiles, DicomSeries, sort_dicom
from lungsynth.ct.file_kinds import FileReport, structure_of
from lungsynth.ct.lidc import read_xml_head
from lungsynth.ct.pairing import ImageName, image_name, says_mask
from lungsynth.ct.patients import NOBODY, check_people, name_patient, names_patients, read_patient_table, with_table
from lungsynth.ct.series import Annotations, NoduleSphere, Problem, SeriesFiles
from lungsynth.ct.source_files import SourceFiles, list_files
from lungsynth.ct.values import is_metaimage, is_nifti
from lungsynth.ct.volume_files import VolumeFiles, sort_volumes
from lungsynth.errors import InputError

__all__ = ["Discovery", "SortSettings", "find_series", "sort_files"]

_logger = logging.getLogger(__name__)
_TABLES = {".csv", ".tsv"}
_PIXELS = {".raw", ".zraw"}
_DOCUMENTS = {
    ".bib", ".bval", ".bvec", ".css", ".docx", ".htm", ".html", ".ini", ".ipynb", ".log", ".m", ".md", ".md5", ".pdf",
    ".py", ".rst", ".rtf", ".sh", ".sha1", ".sha256", ".tcia", ".txt", ".yaml", ".yml",
}  # fmt: skip
_DOCUMENT_NAMES = {"license", "licence", "readme", "changes", "citation", "dicomdir", "version", "authors", "thumbs"}
_PICTURES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".svg", ".tif", ".tiff"}
_OTHER_ARRAYS = {".gz", ".npy", ".npz"}
_NOT_READ = {
    **dict.fromkeys((".hdr", ".img"), "a NIfTI or Analyze pair, which is not read; convert it to one .nii.gz"),
    **dict.fromkeys((".nrrd", ".nhdr"), "NRRD, which is not read; save it as NIfTI (.nii.gz)"),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "a spreadsheet, which is not read; save it as CSV"),
    **dict.fromkeys((".mnc", ".mgz", ".vti", ".mat", ".h5"), "of a format that is not read; convert it to NIfTI"),
    **dict.fromkeys((".7z", ".rar"), "an archive of a kind that is not unpacked; unpack it yourself"),
}
_NEVER_DICOM = {*_TABLES, *_PIXELS, *_DOCUMENTS, *_PICTURES, *_OTHER_ARRAYS, ".json", ".xml"}
_EACH_LISTED = 5  # files of one kind in one folder: more are told together


@dataclass(frozen=True, kw_only=True)
class SortSettings:
    """What a user says of the files.

    Args:
        subset: the sources are parts of their collections: annotations of scans that are not there are no problem.
        labels: what values of label files mean, where nothing else says so.
        synthetic: take slices that this project made for scans of patients.
    """

    subset: bool = False
    labels: Mapping[int, str] = field(default_factory=dict)
    synthetic: bool = False


@dataclass(frozen=True)
class Discovery:
    """What the sources hold.

    Files of archives lie in temporary folders: until `close`, the end of a `with` block, or the end of Python.
    """

    series: tuple[SeriesFiles, ...]
    problems: tuple[Problem, ...]
    files: SourceFiles
    reports: tuple[FileReport, ...] = ()

    def close(self) -> None:
        """Removes what was unpacked from archives."""
        self.files.close()

    def __enter__(self) -> "Discovery":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def find_series(sources: Path | Sequence[Path], settings: SortSettings | None = None) -> Discovery:
    """Finds the CT series of the sources.

    Args:
        sources: folders (with all below them, archives too), archives, or files.
        settings: see `SortSettings`.

    Returns:
        The series, sorted by id, what was not understood, and what each file was taken for.

    Raises:
        InputError: when a source is not there, there is no CT in any, or an `annotations.csv` does not fit them.
    """
    files = list_files(sources)
    try:
        found = sort_files(files, settings or SortSettings())
    except InputError:
        files.close()
        raise
    if not found.series:
        files.close()
        given = [sources] if isinstance(sources, Path) else sources
        first = f" First problem: {found.problems[0].message}" if found.problems else ""
        raise InputError(
            f"{', '.join(map(str, given))}: no CT series found (DICOM, NIfTI or MetaImage, also in zips); give a "
            f"folder that holds one.{first}"
        )
    return found


def sort_files(files: SourceFiles, settings: SortSettings, left_out: Collection[Path] = ()) -> Discovery:
    """Sorts the files of the sources.

    Args:
        files: as `list_files` gives them.
        settings: see `SortSettings`.
        left_out: files, and folders whose files, somebody else reads.

    Raises:
        InputError: when an `annotations.csv` does not fit the scans.
    """
    return _Sorting(files, settings, left_out).run()


# Series of the sources by (kind or file, id): two NIfTI of one name in two folders are two series.
_Key = tuple[str, str]


class _Sorting:
    """One pass over the files of all sources."""

    def __init__(self, files: SourceFiles, settings: SortSettings, left_out: Collection[Path]) -> None:
        self.files, self.settings, self.roots = files, settings, files.roots
        inside = set(left_out)
        self.paths = [path for path in files.paths if path not in inside and not inside.intersection(path.parents)]
        self.problems = list(files.problems)
        self.reports: list[FileReport] = []
        self.nothing: list[tuple[Path, str]] = []
        self.series: dict[_Key, SeriesFiles] = {}
        self.dicom = DicomFiles()
        self.dropped: set[str] = set()  # ids of scans that are here and refused: annotations may name them

    def run(self) -> Discovery:
        """Images first, then all that belongs to them."""
        self._dicom_series()
        volumes = self._volumes()
        heads = self._table_heads()
        self._annotations(heads)
        self._marks()
        self._patients(heads)
        self._rest(heads, volumes)
        self._tell_nothing()
        series = [self.series[key] for key in sorted(self.series, key=lambda key: (key[1], key[0]))]
        return Discovery(tuple(series), tuple(self.problems), self.files, tuple(self.reports))

    def _problem(self, path: Path, why: str) -> None:
        """A file that is of no use, in a sentence."""
        self.problems.append(Problem(path, f"{self.files.shown(path)}: {why}"))
        self.reports.append(FileReport(name=self.files.shown(path), taken_for="nothing", why=why))

    def _report(self, path: Path, taken_for: str, why: str) -> None:
        self.reports.append(FileReport(name=self.files.shown(path), taken_for=taken_for, why=why))

    def _dicom_series(self) -> None:
        candidates = [
            path
            for path in self.paths
            if path.suffix.lower() not in _NEVER_DICOM and not is_metaimage(path) and not is_nifti(path)
        ]
        self.dicom = sort_dicom(candidates, self.files.shown, synthetic=self.settings.synthetic)
        self.problems += self.dicom.problems
        self.reports += self.dicom.reports
        self._refuse_synthetic(self.dicom.synthetic)
        for found in self.dicom.series:
            self.series["dicom", found.series_id] = self._of_dicom(found)

    def _of_dicom(self, found: DicomSeries) -> SeriesFiles:
        patient, told = found.person.patient_id or None, "DICOM: PatientID"
        if patient is None:
            patient, told = name_patient(found.files[0], self.roots, says_ct=False)
        return SeriesFiles(
            kind="dicom",
            series_id=found.series_id,
            patient_id=patient or found.series_id,
            patient_known=patient is not None,
            patient_from=told,
            files=found.files,
        )

    def _volumes(self) -> VolumeFiles:
        paths = [path for path in self.paths if is_nifti(path) or is_metaimage(path)]
        jsons = [path for path in self.paths if path.name.lower() == "dataset.json"]
        images = [self._dicom_name(found) for found in self.dicom.series]
        volumes = sort_volumes(paths, images, jsons, self.files, labels=self.settings.labels)
        self.problems += volumes.problems
        self.reports += volumes.reports
        self._refuse_synthetic(() if self.settings.synthetic else volumes.synthetic)
        for image in volumes.images:
            if not self.settings.synthetic and image.synthetic:
                self.dropped.add(image.series_id)
                continue
            patient, told = name_patient(image.path, self.roots, says_ct=image.says_ct)
            self.series[str(image.path), image.series_id] = SeriesFiles(
                kind="nifti" if is_nifti(image.path) else "metaimage",
                series_id=image.series_id,
                patient_id=patient or image.series_id,
                patient_known=patient is not None,
                patient_from=told,
                files=(image.path,),
            )
        for key, files in self.series.items():
            owned, unread = volumes.masks.get(_owner(files), ()), volumes.unread.get(_owner(files), ())
            self.series[key] = replace(files, masks=tuple(owned), unread=tuple(unread))
            if _owner(files) in volumes.refused:
                self.dropped.add(files.series_id)
        self.series = {key: files for key, files in self.series.items() if _owner(files) not in volumes.refused}
        return volumes

    def _dicom_name(self, found: DicomSeries) -> ImageName:
        person = found.person.patient_id
        return image_name(found.files[0], found.series_id, [found.series_id, *([person] if person else [])])

    def _refuse_synthetic(self, paths: Sequence[Path]) -> None:
        if paths:
            more = f" ({len(paths)} such files)" if len(paths) > 1 else ""
            why = (
                f"a synthetic slice that this project made, not of a patient{more}; it is left out. To take synthetic "
                "slices for scans, say so (`--synthetic`)."
            )
            self._problem(paths[0], why)

    def _table_heads(self) -> dict[Path, TableHead]:
        heads = {}
        for path in self.paths:
            if path.suffix.lower() not in _TABLES:
                continue
            try:
                head = table_head(path)
            except OSError as error:
                self._problem(path, f"could not be opened ({error.strerror}); copy it again, or remove it.")
                continue
            if head is None:
                self.nothing.append((path, "a table whose first line is too long for one of ours"))
            else:
                heads[path] = head
        return heads

    def _annotations(self, heads: Mapping[Path, TableHead]) -> None:
        spheres = self._spheres(heads)
        lidc, boxes = self._xml()
        by_series: dict[str, list[NoduleSphere]] = defaultdict(list)
        for sphere in spheres:
            by_series[sphere.series_id].append(sphere)
        for key, files in self.series.items():
            notes = Annotations(
                lidc_xml=lidc.get(files.series_id),
                voc_xml=tuple(boxes.get(files.series_id, ())),
                spheres=tuple(by_series.get(files.series_id, ())),
            )
            self.series[key] = replace(files, annotations=notes)

    def _spheres(self, heads: Mapping[Path, TableHead]) -> list[NoduleSphere]:
        """Rows of all annotation tables, each once: LUNA16 brings its table twice."""
        rows: list[NoduleSphere] = []
        for path, head in heads.items():
            if "excluded" in path.name.lower() and head.kind == "annotations":
                self._report(path, "not used", "columns of annotations.csv, but its name says excluded")
            elif head.kind == "candidates":
                self._report(path, "not used", "columns of a detector's candidates")
            elif path.name.lower() == "annotations.csv" and not any(head.columns):
                for key in self._beside(path):
                    self._unread(key, path)
                self._problem(path, "is empty; copy it again, or remove it if there are no nodules.")
            elif head.kind == "annotations" or path.name.lower() == "annotations.csv":
                rows += self._of_scans(path, read_luna16_annotations(path))
        return list(dict.fromkeys(rows))

    def _of_scans(self, path: Path, rows: Sequence[NoduleSphere]) -> list[NoduleSphere]:
        """The rows of a table that name scans by id, or by file, and a problem for those that name none."""
        owners: dict[str, set[str]] = defaultdict(set)
        for key, files in self.series.items():
            for name in _texts(key, files, self.files):
                owners[name].add(files.series_id)
        by_name = {name: min(ids) for name, ids in owners.items() if len(ids) == 1}  # others name several scans
        by_id = {series_id: series_id for series_id in self.dropped.union(*owners.values())}
        named = [(row, by_id.get(row.series_id) or by_name.get(_bare_name(row.series_id))) for row in rows]
        self._report(path, "nodules by centre and diameter", "columns of LUNA16's annotations.csv")
        lost = sorted({row.series_id for row, series_id in named if series_id is None})
        if lost and not self.settings.subset:
            beside = [] if len(lost) < len({row.series_id for row in rows}) else self._beside(path)
            for key in beside:
                self._unread(key, path)
            normal = f"; none is, so no slice of the {len(beside)} scans beside it counts as normal" if beside else ""
            told = (
                f"{self.files.shown(path)}: {len(lost)} of its series are not in the sources, first "
                f"{lost[0] or '(empty)'}{normal}. Add the scans, call their files as the table does, or say that the "
                "sources are parts of their collections (`--subset`)."
            )
            self.problems.append(Problem(path, told))
        return [replace(row, series_id=series_id) for row, series_id in named if series_id is not None]

    def _beside(self, path: Path) -> list[_Key]:
        """The scans in the folder of a file, or below it."""
        return [key for key, files in self.series.items() if path.parent in files.files[0].parents]

    def _xml(self) -> tuple[dict[str, Path], dict[str, list[Path]]]:
        """Readers' XML, and Pascal-VOC boxes, by series id."""
        slices = {uid: found.series_id for found in self.dicom.series for uid in found.sop_uids if uid}
        series_ids = {series_id for _, series_id in self.series}
        lidc: dict[str, Path] = {}
        boxes: dict[str, list[Path]] = {}
        missing: list[Path] = []
        for path in (path for path in self.paths if path.suffix.lower() == ".xml"):
            if path.stem in slices:
                boxes.setdefault(slices[path.stem], []).append(path)
                continue
            try:
                head = read_xml_head(path)
            except InputError as error:
                self._unread_reading(path, str(error).replace(f"{path}: ", ""))
                continue
            if head.root == "LidcReadMessage" and not head.series_id:
                self._unread_reading(path, "a reading of LIDC without a SeriesInstanceUID; copy it from its source.")
                continue
            if head.series_id in series_ids:
                self._take_reading(head.series_id or "", path, lidc)
            elif head.series_id is not None or head.root == "annotation":
                missing.append(path)
            elif head.root == "IdriReadMessage":
                self._report(path, "not used", "LIDC's reading of a radiograph")
            else:
                self.nothing.append((path, f"XML of an unknown kind ({head.root})"))
        for series_id, paths in sorted(boxes.items()):
            self._report(paths[0], f"boxes of series {series_id}", f"named by SOPInstanceUID, {len(paths)} files")
        self._missing(missing)
        return lidc, boxes

    def _unread_reading(self, path: Path, why: str) -> None:
        """XML that cannot be used: perhaps the reading of the scan that it lies beside."""
        self._problem(path, why)
        for key, files in list(self.series.items()):
            if path.parent in {one.parent for one in files.files}:
                self._unread(key, path)

    def _take_reading(self, series_id: str, path: Path, lidc: dict[str, Path]) -> None:
        if lidc.setdefault(series_id, path) is path:
            self._report(path, f"readers' outlines of series {series_id}", "XML of LIDC with this SeriesInstanceUID")
        elif path.read_bytes() != lidc[series_id].read_bytes():
            self._problem(path, f"a second reading of series {series_id}, not used; keep one of them.")
        else:
            self._report(path, "not used", f"a copy of {self.files.shown(lidc[series_id])}")

    def _missing(self, paths: Sequence[Path]) -> None:
        """Annotations of scans that are not in the sources."""
        for path in paths:
            self._report(path, "not used", "an annotation whose scan is not in the sources")
        if paths and not self.settings.subset:
            more = f" (and {len(paths) - 1} more like it)" if len(paths) > 1 else ""
            told = (
                f"{self.files.shown(paths[0])}: an annotation whose scan is not in the sources{more}. Add the scan, or "
                "say that the sources are parts of their collections (`--subset`)."
            )
            self.problems.append(Problem(paths[0], told))

    def _marks(self) -> None:
        """SEG, RTSTRUCT and the like: named, and their scans are not normal."""
        by_id = {found.series_id: found for found in self.dicom.series}
        for marks in self.dicom.marks:
            owners = [series_id for series_id, found in by_id.items() if marks.belongs_to(found)]
            if not owners and self.settings.subset:
                self._report(marks.path, "not used", f"{marks.kind} whose scan is not in the sources")
            elif not owners:
                self._problem(
                    marks.path, f"{marks.kind} whose scan is not in the sources; add it, or remove this file."
                )
            else:
                why = (
                    f"{marks.kind} is not read, and none of the slices of its scan counts as normal; convert it to "
                    "NIfTI (X_nodule.nii.gz on the grid of the scan)."
                )
                self._problem(marks.path, why)
            for series_id in owners:
                self._unread(("dicom", series_id), marks.path)

    def _unread(self, key: _Key, path: Path) -> None:
        if key in self.series:
            self.series[key] = replace(self.series[key], unread=(*self.series[key].unread, path))

    def _patients(self, heads: Mapping[Path, TableHead]) -> None:
        texts = {key: _texts(key, files, self.files) for key, files in self.series.items()}
        tables = []
        for path, head in heads.items():
            try:
                table = read_patient_table(path, head, {str(key): names for key, names in texts.items()})
            except InputError as error:
                self.problems.append(Problem(path, str(error).replace(str(path), self.files.shown(path))))
                self._report(path, "nothing", "a table of patients that cannot be used")
                continue
            if table is not None:
                tables.append((self.files.shown(path), table))
                named = sum(any(text in table.patients for text in names) for names in texts.values())
                self._report(path, f"patients of {named} scans", "columns that name patients and scans")
        for key, files in self.series.items():
            self.series[key] = with_table(files, texts[key], tables)
        people = {found.series_id: found.person for found in self.dicom.series}
        keys = list(self.series)
        changed, doubts = check_people([self.series[key] for key in keys], people)
        self.series = dict(zip(keys, changed, strict=True))
        self.problems += doubts
        unknown = [files for files in self.series.values() if files.kind == "dicom" and not files.patient_known]
        if unknown:
            self.reports.append(
                FileReport(
                    name=f"{len(unknown)} DICOM series",
                    count=sum(len(files.files) for files in unknown),
                    taken_for=f"patients: {NOBODY}",
                    why="PatientID is missing",
                )
            )

    def _rest(self, heads: Mapping[Path, TableHead], volumes: VolumeFiles) -> None:
        """What no rule took: tables, pixel data, documents, pictures, and the unknown."""
        told = {report.name for report in self.reports}
        for path, head in heads.items():
            if self.files.shown(path) in told:
                continue
            if path.name.lower() == "participants.tsv":
                self._report(path, "not used", "BIDS: names of subjects, which the files say too")
                continue
            if names_patients(head):
                self._problem(path, "a table of patients that names no scan of the sources; it is not used.")
                continue
            marked = self._marked_by(path, head)
            for key in marked:
                self._unread(key, path)
            about = f"; it seems to mark scans ({len(marked)}), whose slices do not count as normal" if marked else ""
            self.nothing.append((path, f"a table without known columns ({', '.join(head.columns[:6])}){about}"))
        for path in self.paths:
            self._rest_by_suffix(path, volumes)
        for path in self.dicom.others:
            if path.stem.lower() in _DOCUMENT_NAMES or (not path.suffix and _is_text(path)):
                self._report(path, "not used", "a document")
            else:
                known = _NOT_READ.get(path.suffix.lower())
                self._not_read(path, known or "of an unknown kind: neither DICOM, NIfTI nor MetaImage", volumes)

    def _rest_by_suffix(self, path: Path, volumes: VolumeFiles) -> None:
        kind = path.suffix.lower()
        if kind in _PIXELS and path.resolve() not in volumes.pixels:
            self.nothing.append((path, "pixels without a MetaImage header (.mhd) that names them"))
        elif kind == ".json" and path not in volumes.jsons:
            self._document(path, volumes, picture=False)
        elif kind in _PICTURES:
            self._document(path, volumes, picture=True)
        elif kind in _OTHER_ARRAYS and not is_nifti(path):
            self._not_read(path, "of a format that is not read; convert it to NIfTI (.nii.gz)", volumes)
        elif kind in _DOCUMENTS:
            self._report(path, "not used", "a document")

    def _not_read(self, path: Path, why: str, volumes: VolumeFiles) -> None:
        """Takes a file for nothing; where its name is that of a mask, the slices of its scan are not normal."""
        whose = volumes.index.match(path).whose if says_mask(path, self.roots) else None
        owners = [key for key, files in self.series.items() if whose is not None and _owner(files) == whose]
        for key in owners:
            self._unread(key, path)
        normal = "; it is called a mask, so no slice of its scan counts as normal" if owners else ""
        self.nothing.append((path, f"{why}{normal}"))

    def _document(self, path: Path, volumes: VolumeFiles, *, picture: bool) -> None:
        """Pictures and JSON are documents, unless their names say that they are marks."""
        name = f"{path.parent.name if path.parent not in self.roots else ''} {path.stem}".lower()
        kind = "a picture" if picture else "JSON"
        if structure_of(name) == "nodule" or any(
            word in name for word in ("mask", "label", "segm", "annot", "roi", "box")
        ):
            self._not_read(path, f"{kind}, which is not read, though its name says that it marks something", volumes)
        else:
            self._report(path, "not used", f"{kind}, taken for a document")

    def _marked_by(self, path: Path, head: TableHead) -> list[_Key]:
        """The scans that a table of unknown columns marks, as far as its cells name them."""
        if head.kind != "marks":
            return []
        try:
            table = read_table(path, head.separator)
        except InputError:
            return []
        cells = {_bare_name(cell) for name in table.columns for cell in table[name].dropna().astype(str)}
        return [key for key, files in self.series.items() if cells & set(_texts(key, files, self.files))]

    def _tell_nothing(self) -> None:
        """Files that were taken for nothing; many of one kind in one folder are told together."""
        groups: dict[tuple[Path, str, str], list[Path]] = defaultdict(list)
        for path, why in self.nothing:
            groups[path.parent, path.suffix.lower(), why].append(path)
        for (folder, suffix, why), paths in groups.items():
            if len(paths) <= _EACH_LISTED:
                for path in paths:
                    self._problem(path, f"taken for nothing: {why}.")
                continue
            first = self.files.shown(paths[0])
            told = f"{first} and {len(paths) - 1} more like it: taken for nothing: {why}."
            self.problems.append(Problem(paths[0], told))
            where = f"{self.files.shown(folder)}/*{suffix}"
            self.reports.append(FileReport(name=where, count=len(paths), taken_for="nothing", why=why))


def _is_text(path: Path) -> bool:
    with path.open("rb") as stream:
        head = stream.read(1024)
    return bool(head) and all(byte >= 32 or byte in b"\t\r\n" for byte in head)


def _owner(files: SeriesFiles) -> object:
    """What masks know a series by."""
    return files.series_id if files.kind == "dicom" else files.files[0]


def _texts(key: _Key, files: SeriesFiles, sources: SourceFiles) -> tuple[str, ...]:
    """What may name a scan in a table, in lower case."""
    path = files.files[0]
    names = [files.series_id]
    names += [path.parent.name] if files.kind == "dicom" else [_bare_name(path.name), _bare_name(sources.shown(path))]
    return tuple(dict.fromkeys(name.lower() for name in names if name))


def _bare_name(cell: str) -> str:
    """A file name without folders and suffix, in lower case."""
    name = cell.strip().replace("\\", "/").rpartition("/")[2].lower()
    for suffix in (".nii.gz", ".nii", ".mhd", ".mha", ".dcm"):
        name = name.removesuffix(suffix)
    return name
