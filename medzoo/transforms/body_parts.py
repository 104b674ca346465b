"""DICOM's terms for body parts as sets of regions, so that two terms can be compared by what they cover.

The terms are those of DICOM PS3.16 (Annex L, CID 2, 4030, 4031), and common forms in other languages and of vendors.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import NamedTuple

__all__ = ["BodyPart", "body_part"]

Regions = frozenset[str]

# From head to foot: what lies between the ends of "CHEST TO PELVIS" is covered too.
_AXIS = ("HEAD", "NECK", "CHEST", "ABDOMEN", "PELVIS", "THIGH", "LOWERLEG")

# A region, and the terms for it or for a part of it, which cover that part alone. A part that is named twice overlaps.
_PARTS = {
    "HEAD": "BRAIN SKULL FACE ORBIT EAR JAW SINUS NOSE",
    "BRAIN": "PITUITARY CEREBELLUM BRAINSTEM",
    "SKULL": "BRAIN SKULLBASE",
    "FACE": "ORBIT NOSE JAW SINUS ZYGOMA",
    "JAW": "TEETH TMJ",
    "NECK": "THROAT THYROID CAROTID CSPINE",
    "CHEST": "LUNG HEART MEDIASTINUM RIB STERNUM BREAST TSPINE THORACICAORTA ESOPHAGUS PLEURA",
    "HEART": "CORONARY",
    "MEDIASTINUM": "HEART THORACICAORTA ESOPHAGUS TRACHEA",
    "ABDOMEN": "LIVER SPLEEN PANCREAS KIDNEY ADRENAL STOMACH GALLBLADDER ABDOMINALAORTA LSPINE",
    "PELVIS": "BLADDER PROSTATE UTERUS OVARY RECTUM HIP SACRUM GENITALS",
    "SHOULDER": "SCAPULA CLAVICLE HUMERALHEAD",
    "UPPERARM": "HUMERALHEAD",
    "HAND": "FINGER",
    "FOOT": "TOE HEEL",
    "ARM": "SHOULDER UPPERARM ELBOW FOREARM WRIST HAND",
    "LEG": "HIP THIGH KNEE LOWERLEG ANKLE FOOT",
    "SPINE": "CSPINE TSPINE LSPINE SACRUM",
    "AORTA": "THORACICAORTA ABDOMINALAORTA",
    "TRUNK": "NECK CHEST ABDOMEN PELVIS SPINE AORTA",
    "WHOLEBODY": "HEAD TRUNK ARM LEG",
}

# Other terms, without spaces: DICOM's, then those of other languages. A term that is a common word of another meaning,
# such as the French MAIN, is left out.
_SYNONYMS = {
    "HEAD": "KOPF CABEZA TETE TESTA HOOFD HUVUD HODE CABECA HEADENTIRE 头部 頭部",
    "BRAIN": "CEREBRUM CEREBRAL NEURO INTRACRANIAL GEHIRN HIRN CEREBRO CERVEAU CERVELLO ENCEPHALE ENCEFALO HERSENEN",
    "SKULL": "CRANIUM CRANIAL SCHAEDEL SCHADEL CRANEO CRANE CRANIO SCHEDEL",
    "PITUITARY": "SELLA SELLATURCICA HYPOPHYSIS",
    "FACE": "FACIAL MAXILLOFACIAL FACIALBONES",
    "ORBIT": "ORBITS EYE EYES ORBITA",
    "EAR": "EARS IAC TEMPORALBONE MASTOID INTERNALAUDITORYCANAL",
    "JAW": "MANDIBLE MAXILLA MANDIBULA DENTAL",
    "TEETH": "TOOTH",
    "SINUS": "SINUSES PARANASALSINUS PARANASALSINUSES NNH",
    "NOSE": "NASAL NASALBONE NASALBONES",
    "ZYGOMA": "ZYGOMATIC",
    "NECK": "CERVICAL HALS CUELLO COU COLLO NEK PESCOCO",
    "THROAT": "LARYNX PHARYNX NASOPHARYNX OROPHARYNX TONGUE",
    "CAROTID": "CAROTIDS CAROTIDARTERY",
    "CHEST": "THORAX THORACIC TORAX TORACE TORAKS BRUST BRUSTKORB POITRINE BORST BROST PECHO PEITO KLATKAPIERSIOWA "
    "GOGUS CXR HEMITHORAX CAGETHORACIQUE THORACIQUE BRYST BRYSTKASSE HRUDNIK CHESTPA CHESTAP CHESTLAT CHESTLATERAL "
    "CHESTPALAT THORAXPA THORAXAP THORAXLAT 胸部 胸",
    "LUNG": "LUNGS PULMONARY LUNGE LUNGEN PULMON PULMONES PULMAO POUMON POUMONS POLMONE POLMONI LONGEN LUNGOR AKCIGER "
    "BRONCHUS BRONCHI 肺",
    "HEART": "CARDIAC CORONARYHEART HERZ COEUR CORAZON CUORE CORACAO HART",
    "CORONARY": "CORONARIES CORONARYARTERY CORONARYARTERIES",
    "RIB": "RIBS RIPPEN RIBCAGE COTES COSTILLAS",
    "BREAST": "BREASTS MAMMA MAMMARY MAMA",
    "ESOPHAGUS": "OESOPHAGUS",
    "THORACICAORTA": "AORTICARCH",
    "ABDOMEN": "ABDOMINAL ABD ABDO ADDOME ABDOME BAUCH BUIK BUK VENTRE RETROPERITONEUM UPPERABDOMEN OBERBAUCH KUB 腹部",
    "LIVER": "HEPATIC LEBER HIGADO FOIE FEGATO",
    "KIDNEY": "KIDNEYS RENAL NIERE NIEREN RINON URETER",
    "ADRENAL": "ADRENALS ADRENALGLAND",
    "STOMACH": "GASTRIC DUODENUM",
    "GALLBLADDER": "BILEDUCT BILIARY",
    "PELVIS": "PELVIC BECKEN BASSIN BACINO BACIA BEKKEN LOWERABDOMEN 骨盆",
    "BLADDER": "URINARYBLADDER URETHRA",
    "UTERUS": "CERVIX VAGINA",
    "OVARY": "OVARIES",
    "GENITALS": "SCROTUM TESTIS TESTES PENIS",
    "HIP": "HIPS HIPJOINT HUEFTE HUFTE CADERA HANCHE ANCA HEUP",
    "SACRUM": "SSPINE SACRAL SACRALSPINE COCCYX SIJOINT SACROILIACJOINT",
    "SHOULDER": "SHOULDERS SHOULDERJOINT ACJOINT ACROMIOCLAVICULARJOINT SCHULTER HOMBRO EPAULE SPALLA OMBRO SCHOUDER",
    "CLAVICLE": "CLAVICLES CLAVICULA SCJOINT STERNOCLAVICULARJOINT",
    "UPPERARM": "HUMERUS OBERARM",
    "ELBOW": "ELBOWJOINT ELLENBOGEN CODO COUDE GOMITO",
    "FOREARM": "RADIUS ULNA RADIUSULNA LOWERARM UNTERARM ANTEBRAZO",
    "WRIST": "WRISTJOINT CARPAL SCAPHOID HANDGELENK MUNECA POIGNET POLSO POLS",
    "HAND": "HANDS MANO MAO METACARPAL",
    "FINGER": "FINGERS THUMB",
    "ARM": "UPPEREXTREMITY UPPERLIMB BRAZO BRAS ARMENTIRE",
    "THIGH": "FEMUR OBERSCHENKEL MUSLO CUISSE",
    "KNEE": "KNEES KNEEJOINT PATELLA KNIE RODILLA GENOU GINOCCHIO JOELHO KNA",
    "LOWERLEG": "TIBIA FIBULA TIBIAFIBULA CALF SHIN UNTERSCHENKEL",
    "ANKLE": "ANKLEJOINT SPRUNGGELENK TOBILLO CHEVILLE CAVIGLIA ENKEL",
    "FOOT": "FEET FUSS PIE PIED PIEDE VOET METATARSAL",
    "TOE": "TOES GREATTOE",
    "HEEL": "CALCANEUS",
    "LEG": "LEGS LOWEREXTREMITY LOWERLIMB BEIN PIERNA JAMBE GAMBA",
    "SPINE": "WHOLESPINE ENTIRESPINE WIRBELSAEULE WIRBELSAULE COLUMNA RACHIS SPINAL VERTEBRA VERTEBRAE",
    "CSPINE": "CERVICALSPINE HWS",
    "TSPINE": "DSPINE THORACICSPINE DORSALSPINE BWS",
    "LSPINE": "LUMBARSPINE LUMBAR LWS",
    "TRUNK": "TORSO",
    "WHOLEBODY": "WB BODY ENTIREBODY FULLBODY GANZKOERPER GANZKORPER TOTALBODY",
}

# Terms for what several of the above cover.
_COMBINED = {
    "CTSPINE": "SPINE", "CERVICOTHORACICSPINE": "CSPINE TSPINE", "TLSPINE": "TSPINE LSPINE",
    "THORACOLUMBARSPINE": "TSPINE LSPINE", "LSSPINE": "LSPINE SACRUM", "LUMBOSACRALSPINE": "LSPINE SACRUM",
    "CAP": "CHEST ABDOMEN PELVIS", "TAP": "CHEST ABDOMEN PELVIS", "EXTREMITY": "ARM LEG", "LIMB": "ARM LEG",
    "EXTREMITIES": "ARM LEG", "LIMBS": "ARM LEG", "PELV": "PELVIS", "BOWEL": "ABDOMEN PELVIS",
    "COLON": "ABDOMEN PELVIS", "INTESTINE": "ABDOMEN PELVIS", "SMALLBOWEL": "ABDOMEN PELVIS",
    "LARGEBOWEL": "ABDOMEN PELVIS", "SMALLINTESTINE": "ABDOMEN PELVIS", "LARGEINTESTINE": "ABDOMEN PELVIS",
    "DIAPHRAGM": "CHEST ABDOMEN", "AIRWAY": "NECK CHEST",
}  # fmt: skip


class BodyPart(NamedTuple):
    """What a term covers.

    Attributes:
        regions: empty for an unknown term.
        names: the regions that the term names, never as written: a written word may be a surname.
    """

    regions: Regions
    names: str


def body_part(term: str) -> BodyPart:
    """Return what a term covers, by every known word in it; empty for an unknown term.

    Case, accents and separators do not matter, nor UTF-8 that was decoded as Latin-1.

    >>> chest = body_part("CHEST").regions
    >>> chest == body_part("Thorax PA").regions, chest & body_part("HAND").regions
    (True, frozenset())
    >>> body_part("BAUCH^ROUTINE").names
    'ABDOMEN'
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", _decoded(term).upper()) if not unicodedata.combining(c))
    words = [word for word in re.split(r"[\W_\d]+", plain) if word]
    known = list(_known_words(words))
    regions = frozenset[str]().union(*(_terms()[word] for word in known))
    if "TO" in words and len(known) > 1:
        places = [i for i, region in enumerate(_AXIS) if any(_terms()[word] & _terms()[region] for word in known)]
        if places:
            regions = regions.union(*(_terms()[region] for region in _AXIS[min(places) : max(places) + 1]))
    return BodyPart(regions, ", ".join(dict.fromkeys(name for word in known for name in _names()[word])))


def _decoded(term: str) -> str:
    """Return a term as UTF-8 where it is that, decoded as Latin-1: DICOM allows ASCII alone in it, and writers do not.

    Capitals replace some bytes, which small letters restore.

    >>> _decoded("TÓRAX".encode().decode("latin-1")), _decoded("胸部".encode().decode("latin-1").upper())
    ('TÓRAX', '胸部')
    >>> _decoded("Tórax")
    'Tórax'
    """
    for written in (term, term.lower()):
        with suppress(UnicodeError):
            return written.encode("latin-1").decode("utf-8")
    return term


def _known_words(words: list[str]) -> Iterator[str]:
    """Yield the known terms: the longest run of up to three words first, then words that consist of known ones."""
    at = 0
    while at < len(words):
        for count in (3, 2, 1):
            run = "".join(words[at : at + count])
            if found := [run] if run in _terms() else _split(run) if count == 1 else []:
                yield from found
                break
        at += count


def _split(word: str) -> list[str]:
    """Return the known words that a word like ``CHESTABDPELVIS`` consists of, or an empty list."""
    for end in range(len(word) - 3, 2, -1):
        if word[:end] in _terms():
            rest = [word[end:]] if word[end:] in _terms() else _split(word[end:])
            if rest:
                return [word[:end], *rest]
    return []


@cache
def _names() -> dict[str, tuple[str, ...]]:
    """Return the names of regions that each term stands for."""
    regions = {*_PARTS, *_SYNONYMS, *(part for parts in _PARTS.values() for part in parts.split())}
    names: dict[str, tuple[str, ...]] = {region: (region,) for region in regions}
    names |= {term: (region,) for region, terms in _SYNONYMS.items() for term in terms.split()}
    return names | {term: tuple(parts.split()) for term, parts in _COMBINED.items()}


@cache
def _terms() -> dict[str, Regions]:
    """Return the regions of each term. A region covers its parts; each part is a region of its own."""

    def cover(region: str) -> Regions:
        parts = _PARTS.get(region, "").split()
        return frozenset({region}).union(*(cover(part) for part in parts))

    return {term: frozenset[str]().union(*map(cover, names)) for term, names in _names().items()}
