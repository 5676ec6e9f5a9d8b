import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from triptych.data.class_lists import KINETICS_SOUND
from triptych.data.layouts import LAYOUTS, Layout, read_layout, write_layout
from triptych.errors import TriptychError, UsageError


def _write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def _touch(folder: Path, *names: str) -> Path:
    for name in names:
        _write(folder, name, "")
    return folder


def _parts(layout: Layout) -> dict[object, int]:
    return dict(Counter(row["split"] for row in layout.rows))


def _check_targets(layout: Layout) -> None:
    """Every class id is the position of the row's class name."""
    for row in layout.rows:
        assert layout.classes[int(str(row["target"]))] == row["label"]


@pytest.fixture(scope="session")
def lists(data_dir: Path) -> Path:
    return data_dir / "annotations"


# The real files of the data sets.


@pytest.mark.parametrize(("split", "train", "test"), [(1, 9537, 3783), (2, 9586, 3734), (3, 9624, 3696)])
def test_ucf101_as_published(lists: Path, split: int, train: int, test: int) -> None:
    layout = read_layout("ucf101", None, lists / "ucf101", split)
    assert _parts(layout) == {"train": train, "test": test}
    assert len({row["path"] for row in layout.rows}) == 13320
    assert len(layout.classes) == 101 and layout.classes[0] == "ApplyEyeMakeup" and layout.classes[100] == "YoYo"
    assert layout.notes == ""
    _check_targets(layout)


@pytest.mark.parametrize("split", [1, 2, 3])
def test_hmdb51_as_published_and_as_mil_nce_lists_it(lists: Path, tmp_path: Path, split: int) -> None:
    official = read_layout("hmdb51", None, lists / "hmdb51", split)
    assert _parts(official) == {"train": 3570, "test": 1530}
    assert set(Counter((row["label"], row["split"]) for row in official.rows).values()) == {70, 30}
    assert official.classes[0] == "brush_hair" and official.classes[50] == "wave" and len(official.classes) == 51
    _check_targets(official)
    shutil.copy(lists / "hmdb51" / "hmdb51_mil_nce.csv", tmp_path)
    single = read_layout("hmdb51", None, tmp_path, split)
    assert single.classes == official.classes
    assert {tuple(row.items()) for row in single.rows} == {tuple(row.items()) for row in official.rows}


def test_hmdb51_finds_odd_names_on_disk(lists: Path, tmp_path: Path) -> None:
    odd = (
        "pick/#122_Cleaning_Up_The_Beach_In_Chiba__Japan_pick_f_nm_np1_fr_bad_1.avi",
        "sword/Duncan_Macleod_&_Amanda_Soulmates_Part_2_sword_u_cm_np2_fr_med_0.avi",
        "cartwheel/Geena_und_die_Radschl_ge___;-)_cartwheel_f_cm_np1_fr_med_2.avi",
        "jump/LE_PARKOUR_BRASIL_DIOGO_GRANATO_(HD)_jump_u_cm_np1_le_bad_0.avi",
        "dive/BASE_JUMPING_COMPILATION_PART_3_AMAZING!!!!!!!_dive_f_cm_np1_fr_bad_4.avi",
    )
    listed = {str(row["path"]) for row in read_layout("hmdb51", None, lists / "hmdb51", 1).rows}
    used = [name for name in odd if name in listed]
    assert len(used) >= 4
    layout = read_layout("hmdb51", _touch(tmp_path, *used), lists / "hmdb51", 1)
    assert sorted(str(row["path"]) for row in layout.rows) == sorted(used)
    assert layout.missing == 5100 - len(used) and "5100" in layout.notes


def test_esc10_on_real_sounds(data_dir: Path) -> None:
    layout = read_layout("esc10", data_dir / "esc10", data_dir / "esc10" / "meta")
    assert len(layout.rows) == 320 and layout.missing == 0
    assert Counter(row["fold"] for row in layout.rows) == {1: 80, 2: 80, 3: 80, 4: 80}
    assert layout.classes[:3] == ("dog", "rooster", "rain") and len(layout.classes) == 10
    assert all("split" not in row for row in layout.rows) and "folds 1 to 5, 1, 2, 3, 4 are listed" in layout.notes
    _check_targets(layout)
    tested = read_layout("esc10", data_dir / "esc10", data_dir / "esc10", split=2)
    assert {(row["fold"], row["split"]) for row in tested.rows} == {
        (1, "train"),
        (2, "test"),
        (3, "train"),
        (4, "train"),
    }
    assert "10 classes are listed; 50" in read_layout("esc50", data_dir / "esc10", data_dir / "esc10").notes
    with pytest.raises(TriptychError, match="nothing in fold 5"):
        read_layout("esc10", data_dir / "esc10", data_dir / "esc10", split=5)


def test_audioset_as_published(lists: Path) -> None:
    layout = read_layout("audioset", None, lists / "audioset")
    assert _parts(layout) == {"train": 22160} and len(layout.classes) == 527
    first = layout.rows[0]
    assert first["path"] == "--PJHxphWEs_30000_40000.mp4"
    assert (first["labels"], first["targets"]) == ("Speech|Gush", f"0|{layout.classes.index('Gush')}")
    assert (first["source_start"], first["source_end"]) == (30.0, 40.0) and "start" not in first
    assert layout.classes[1] == "Male speech, man speaking"
    for row in layout.rows:
        assert [layout.classes[int(at)] for at in str(row["targets"]).split("|")] == str(row["labels"]).split("|")


def test_vggsound_as_published(lists: Path) -> None:
    layout = read_layout("vggsound", None, lists / "vggsound", "test")
    assert _parts(layout) == {"test": 15446} and len(layout.classes) == 309 and layout.notes == ""
    row = next(row for row in layout.rows if row["path"] == "0_8-g2rof7E_000049.mp4")
    assert row["label"] == "heart sounds, heartbeat"
    assert (row["youtube_id"], row["source_start"], row["source_end"]) == ("0_8-g2rof7E", 49.0, 59.0)
    _check_targets(layout)
    with pytest.raises(TriptychError, match="nothing for this split"):
        read_layout("vggsound", None, lists / "vggsound", "train")


def test_kinetics400_list_and_label_map(lists: Path) -> None:
    layout = read_layout("kinetics400", None, lists / "kinetics400")
    assert _parts(layout) == {"val": 19839} and len(layout.classes) == 400 and layout.notes == ""
    assert layout.classes[:2] == ("abseiling", "air drumming")
    assert layout.rows[0]["path"] == "playing xylophone/ZM3UPqyT210_000005_000015.mp4"
    assert layout.rows[0]["label"] == "playing xylophone" and layout.rows[0]["source_end"] == 15.0
    _check_targets(layout)


def test_kinetics_sound_filters(lists: Path) -> None:
    own = read_layout("kinetics_sound", None, lists / "kinetics_sound", "val")
    assert len(own.rows) == 1593 and own.classes == KINETICS_SOUND and len(set(KINETICS_SOUND)) == 32
    assert {row["label"] for row in own.rows} == set(KINETICS_SOUND)
    _check_targets(own)
    cut = read_layout("kinetics_sound", None, lists / "kinetics400", "val")
    assert {row["path"] for row in cut.rows} == {row["path"] for row in own.rows}


def test_kinetics_sound_of_ogm_ge(lists: Path) -> None:
    layout = read_layout("kinetics_sound_ogm", None, lists / "kinetics_sound")
    assert _parts(layout) == {"test": 2597} and {row["target"] for row in layout.rows} == set(range(31))
    assert (layout.rows[0]["youtube_id"], layout.rows[0]["source_start"]) == ("-3Mwkq-7TV4", 2.0)
    _check_targets(layout)


def test_msrvtt_test_pairs_alone(lists: Path) -> None:
    layout = read_layout("msrvtt", None, lists / "msrvtt")
    assert _parts(layout) == {"test": 1000} and "test pairs alone" in layout.notes
    assert layout.rows[2]["path"] == "video7020.mp4"
    assert layout.rows[2]["caption"] == "a woman creating a fondant baby and flower"
    assert len({row["group"] for row in layout.rows}) == 1000


@pytest.mark.parametrize(
    ("split", "parts"),
    [
        ("1k-A", {"train": 18000, "test": 1000}),
        ("1k-A-7k", {"train": 14020, "test": 1000}),
        ("1k-B", {"train": 13312, "test": 1000}),
        ("full", {"train": 13026, "val": 994, "test": 5980}),
    ],
)
def test_msrvtt_lists_as_published(lists: Path, tmp_path: Path, split: str, parts: dict[str, int]) -> None:
    # The lists are the real ones; the JSON, which is not among them, has its form and two captions a video.
    shutil.copytree(lists / "msrvtt", tmp_path, dirs_exist_ok=True)
    words = ["train"] * 6513 + ["validate"] * 497 + ["test"] * 2990
    _write(
        tmp_path,
        "MSRVTT_data.json",
        json.dumps(
            {
                "videos": [
                    {
                        "video_id": f"video{n}",
                        "category": 1,
                        "start time": 2.5,
                        "end time": 12.0,
                        "split": word,
                        "id": n,
                    }
                    for n, word in enumerate(words)
                ],
                "sentences": [
                    {"caption": f"{said} of {n}", "video_id": f"video{n}", "sen_id": 2 * n + said}
                    for said in (1, 0)
                    for n in range(10000)
                ],
            }
        ),
    )
    layout = read_layout("msrvtt", None, tmp_path, split)
    assert _parts(layout) == parts
    train = {row["group"] for row in layout.rows if row["split"] == "train"}
    assert not train & {row["group"] for row in layout.rows if row["split"] == "test"}
    first = layout.rows[0]
    assert (first["caption"], first["source_start"], first["category"]) == ("0 of 0", 2.5, 1)
    if split == "1k-B":
        assert next(row["caption"] for row in layout.rows if row["split"] == "test") == "0 of 8782"


def test_youcook2_validation_as_mil_nce_lists_it(lists: Path) -> None:
    layout = read_layout("youcook2", None, lists / "youcook2")
    assert _parts(layout) == {"val": 3350} and len({row["video_id"] for row in layout.rows}) == 436
    assert len({row["recipe"] for row in layout.rows}) == 89
    assert layout.rows[0] == {
        "path": "validation/226/xHr8X2Wpmno.mp4",
        "caption": "pick the ends off the verdalago",
        "start": 47.0,
        "end": 60.0,
        "split": "val",
        "video_id": "xHr8X2Wpmno",
        "recipe": "226",
    }
    with pytest.raises(TriptychError, match=r"youcookii_annotations_trainval\.json, which is not in"):
        read_layout("youcook2", None, lists / "youcook2", "train")


def test_audiocaps_as_published(lists: Path) -> None:
    layout = read_layout("audiocaps", None, lists / "audiocaps")
    assert _parts(layout) == {"val": 2475, "test": 4875}
    assert set(Counter(row["group"] for row in layout.rows).values()) == {5}
    assert layout.rows[0]["path"] == "vfY_TJq7n_U_130.wav"
    assert str(layout.rows[0]["caption"]).startswith("Rustling occurs, ducks quack and water splashes, followed")


# Layouts whose files are not among the real ones: three rows by hand.


def test_esc50_with_fifty_classes_keeps_the_numbers(tmp_path: Path) -> None:
    text = "filename,fold,target,category,esc10,src_file,take\n"
    text += "".join(f"1-{n}-A-{n}.wav,{n % 5 + 1},{n},class{n},False,{n},A\n" for n in reversed(range(50)))
    _write(tmp_path, "meta/esc50.csv", text)
    layout = read_layout("esc50", None, tmp_path)
    assert all(row["target"] == row["source_target"] for row in layout.rows) and layout.notes == ""


def test_audioset_with_comments_and_whole_videos(tmp_path: Path) -> None:
    _write(tmp_path, "class_labels_indices.csv", 'index,mid,display_name\n0,/m/a,"Male speech, man"\n1,/m/b,Dog\n')
    _write(
        tmp_path,
        "eval_segments.csv",
        "# Segments csv created Sun Mar  5 10:54:25 2017\n# num_ytids=2, num_segs=2, num_unique_labels=2\n"
        '# YTID, start_seconds, end_seconds, positive_labels\n--4gqARaEJE, 0.000, 10.000, "/m/b,/m/a"\n'
        'AAAAAAAAAAA, 20.000, 30.000, "/m/a"\nBBBBBBBBBBB, 7.000, 9.500, "/m/b"\n',
    )
    media = _touch(tmp_path / "media", "x/Y--4gqARaEJE.wav", "AAAAAAAAAAA_20_30.flac", "BBBBBBBBBBB_7000_9500.mp4")
    layout = read_layout("audioset", media, tmp_path, "eval")
    assert [row["path"] for row in layout.rows] == [
        "x/Y--4gqARaEJE.wav",
        "AAAAAAAAAAA_20_30.flac",
        "BBBBBBBBBBB_7000_9500.mp4",
    ]
    assert layout.rows[0]["labels"] == "Dog|Male speech, man" and layout.rows[0]["targets"] == "1|0"
    assert {row["split"] for row in layout.rows} == {"test"}
    whole = read_layout("audioset", None, tmp_path, untrimmed=True)
    assert (whole.rows[2]["path"], whole.rows[2]["start"], whole.rows[2]["end"]) == ("BBBBBBBBBBB.mp4", 7.0, 9.5)
    _write(tmp_path, "eval_segments.csv", '# one\nAAAAAAAAAAA, 20.000, 30.000, "/m/z"\n')
    with pytest.raises(TriptychError, match=r"eval_segments\.csv, line 2: '/m/z' is not in"):
        read_layout("audioset", None, tmp_path)


def test_vggsound_official_csv(tmp_path: Path) -> None:
    _write(
        tmp_path,
        "vggsound.csv",
        '---g-f_I2yQ,1,"people eating, noisily",test\n--0PQM4-hqg,30,waterfall burbling,train\n'
        "--56QUhyDQM,185,playing tennis,train\n",
    )
    layout = read_layout("vggsound", None, tmp_path)
    assert layout.classes == ("people eating, noisily", "playing tennis", "waterfall burbling")
    assert [row["target"] for row in layout.rows] == [0, 2, 1] and _parts(layout) == {"test": 1, "train": 2}
    assert layout.rows[2]["path"] == "--56QUhyDQM_000185.mp4" and "3 classes are listed; 309" in layout.notes
    train = read_layout("vggsound", None, tmp_path, "train")
    assert [row["target"] for row in train.rows] == [2, 1]  # class ids do not depend on the part
    whole = read_layout("vggsound", None, tmp_path, untrimmed=True)
    assert (whole.rows[1]["path"], whole.rows[1]["start"], whole.rows[1]["end"]) == ("--0PQM4-hqg.mp4", 30.0, 40.0)


@pytest.mark.parametrize("name", ["kinetics400", "kinetics600", "kinetics700", "kinetics_sound"])
def test_kinetics_official_csv(tmp_path: Path, name: str) -> None:
    header = "label,youtube_id,time_start,time_end,split\n"
    _write(tmp_path, "train.csv", header + "zumba,AAAAAAAAAAA,5,15,train\nbowling,BBBBBBBBBBB,0,10,train\n")
    _write(tmp_path, "validate.csv", header + '"hurling (sport)",CCCCCCCCCCC,100,110,val\n')
    _write(tmp_path, "test.csv", "youtube_id,time_start,time_end,split\nDDDDDDDDDDD,3,13,test\n")
    media = _touch(tmp_path / "media", "train/bowling/BBBBBBBBBBB_000000_000010.webm", "CCCCCCCCCCC_000100_000110.mp4")
    if name == "kinetics_sound":
        layout = read_layout(name, media, tmp_path)
        assert [row["path"] for row in layout.rows] == ["train/bowling/BBBBBBBBBBB_000000_000010.webm"]
        assert layout.rows[0]["target"] == 2 and layout.missing == 0
        return
    layout = read_layout(name, media, tmp_path)
    assert layout.classes == ("bowling", "hurling (sport)", "zumba") and layout.missing == 2
    assert [(row["label"], row["target"], row["split"]) for row in layout.rows] == [
        ("bowling", 0, "train"),
        ("hurling (sport)", 1, "val"),
    ]
    assert read_layout(name, None, tmp_path, "val").rows[0]["target"] == 1
    assert "label" not in read_layout(name, None, tmp_path, "test").rows[0]
    assert f"3 classes are listed; {name[-3:]}" in layout.notes


def test_youcook2_official_json(tmp_path: Path) -> None:
    video = {"duration": 99.0, "video_url": "", "recipe_type": "101"}
    steps = [
        {"segment": [4, 9], "id": 0, "sentence": "cut, then fry"},
        {"segment": [9, 20], "id": 1, "sentence": "eat"},
    ]
    database = {
        "AAAAAAAAAAA": {**video, "subset": "training", "annotations": steps},
        "BBBBBBBBBBB": {**video, "subset": "validation", "annotations": steps[:1]},
    }
    file = _write(tmp_path, "youcookii_annotations_trainval.json", json.dumps({"database": database}))
    media = _touch(tmp_path / "media", "training/101/AAAAAAAAAAA.mkv", "BBBBBBBBBBB.webm")
    layout = read_layout("youcook2", media, tmp_path)
    assert [(row["path"], row["split"], row["start"], row["end"], row["caption"]) for row in layout.rows] == [
        ("training/101/AAAAAAAAAAA.mkv", "train", 4.0, 9.0, "cut, then fry"),
        ("training/101/AAAAAAAAAAA.mkv", "train", 9.0, 20.0, "eat"),
        ("BBBBBBBBBBB.webm", "val", 4.0, 9.0, "cut, then fry"),
    ]
    assert len(read_layout("youcook2", media, tmp_path, "val").rows) == 1
    file.write_text('{"database": {"A": {"subset": "training"}}}')
    with pytest.raises(TriptychError, match="entry without 'annotations'"):
        read_layout("youcook2", None, tmp_path)
    file.write_text('{"database":\n oops}')
    with pytest.raises(TriptychError, match=r"line 2: this is not JSON"):
        read_layout("youcook2", None, tmp_path)


def test_audiocaps_train_and_missing_clips(tmp_path: Path) -> None:
    text = 'audiocap_id,youtube_id,start_time,caption\n1,AAAAAAAAAAA,30,a\u2028dog\n2,BBBBBBBBBBB,0,"rain, wind"\n'
    _write(tmp_path, "train.csv", text + "3,CCCCCCCCCCC,5,gone\n")
    layout = read_layout("audiocaps", _touch(tmp_path / "m", "YAAAAAAAAAAA.wav", "2.flac"), tmp_path, "train")
    assert [(row["path"], row["caption"]) for row in layout.rows] == [
        ("YAAAAAAAAAAA.wav", "a\u2028dog"),
        ("2.flac", "rain, wind"),
    ]
    assert layout.missing == 1 and "1 of 3 listed files" in layout.notes and "CCCCCCCCCCC_5.wav" in layout.notes


# The contract.


def _ucf(folder: Path) -> Path:
    _write(folder, "classInd.txt", "1 Archery\r\n2 Basketball\r\n")
    _write(folder, "trainlist01.txt", "Archery/v_Archery_g08_c01.avi 1\r\nBasketball/v_Basketball_g08_c01.avi 2\r\n")
    _write(folder, "testlist01.txt", "Basketball/v_Basketball_g01_c01.avi\r\n")
    return folder


def test_files_are_found_by_path_by_suffix_and_by_stem(tmp_path: Path) -> None:
    media = _touch(
        tmp_path / "media",
        "Archery/v_Archery_g08_c01.avi",
        "Archery/v_Archery_g08_c01.mp4",  # the distributed name wins over a preferred suffix
        "Basketball/v_Basketball_g08_c01.webm",
        "Basketball/v_Basketball_g08_c01.flac",  # behind it in the order of suffixes, before it in the alphabet
        "Basketball/v_Basketball_g08_c01.txt",
        "small/v_Basketball_g08_c01.mp4",  # the distributed folder wins over another
        "flat/v_Basketball_g01_c01.MKV",
    )
    layout = read_layout("ucf101", media, _ucf(tmp_path / "lists"))
    assert [row["path"] for row in layout.rows] == [
        "Archery/v_Archery_g08_c01.avi",
        "Basketball/v_Basketball_g08_c01.webm",
        "flat/v_Basketball_g01_c01.MKV",
    ]
    assert layout.missing == 0
    _touch(media, "other/v_Basketball_g01_c01.mp4")
    with pytest.raises(TriptychError, match=r"may be flat/.* or other/.*; name the folder"):
        read_layout("ucf101", media, tmp_path / "lists")


def test_linked_folders_are_read_and_circles_left(tmp_path: Path) -> None:
    _touch(tmp_path / "store", "v_Archery_g08_c01.avi")
    media = tmp_path / "media"
    media.mkdir()
    (media / "elsewhere").symlink_to(tmp_path / "store")
    (media / "circle").symlink_to(media)
    layout = read_layout("ucf101", media, _ucf(tmp_path / "lists"))
    assert [row["path"] for row in layout.rows] == ["elsewhere/v_Archery_g08_c01.avi"] and layout.missing == 2


def test_the_manifest_is_written_with_paths_from_its_own_folder(tmp_path: Path) -> None:
    media = _touch(tmp_path / "media", "Archery/v_Archery_g08_c01.avi", "Basketball/v_Basketball_g01_c01.avi")
    out = tmp_path / "made" / "manifest.csv"
    layout = write_layout("ucf101", media, _ucf(tmp_path / "lists"), out)
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "path": "../media/Archery/v_Archery_g08_c01.avi",
        "split": "train",
        "label": "Archery",
        "target": "0",
    }
    assert [(out.parent / row["path"]).is_file() for row in rows] == [True, True] and layout.missing == 1


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("classInd.txt", "1 Archery\n3 Basketball\n", r"classInd\.txt, line 2: '2 CLASS' is expected"),
        ("trainlist01.txt", "Archery/a.avi 1\n\nGolf/b.avi 2\n", r"trainlist01\.txt, line 3: 'Golf/b\.avi 2' does not"),
        ("trainlist01.txt", "Archery/a.avi 2\n", r"line 1: class 2 is not that of Archery in classInd\.txt \(1\)"),
        ("trainlist01.txt", "Archery/a.avi\n", r"line 1: '' is no whole number"),
        ("testlist01.txt", "Archery\n", r"testlist01\.txt, line 1: 'Archery' does not begin"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, file: str, text: str, said: str) -> None:
    _write(_ucf(tmp_path), file, text)
    with pytest.raises(TriptychError, match=said):
        read_layout("ucf101", None, tmp_path)


@pytest.mark.parametrize(
    ("layout", "file", "text", "said"),
    [
        ("hmdb51", "wave_test_split1.txt", "a b.avi 1 \nc.avi 3\n", "line 2: a file name and 0, 1 or 2"),
        ("esc50", "esc50.csv", "filename,fold\n", "line 1: the header has no column 'target'"),
        ("esc50", "esc50.csv", "", "line 1: the header has no column 'filename' .it has nothing"),
        ("vggsound", "vggsound.csv", "a,1,b,train\na,x,b,train\n", "line 2: 'x' is no time in seconds"),
        ("vggsound", "vggsound.csv", "a,1,b\n", "line 1: 4 cells are expected, 3 are there"),
        ("vggsound", "vggsound.csv", 'a,1,"b,train\n', "this is not CSV"),
        ("vggsound", "test.csv", "short.mp4,b\n", "line 1: 'short.mp4' is not ID_SECONDS.mp4"),
        ("kinetics400", "val.txt", '["a/b.avi"]', "line 1: name 1, 'a/b.avi', is not CLASS/ID_START_END"),
        ("kinetics400", "val.txt", "{}", "a JSON array of file names is expected"),
        ("youcook2", "validation_youcook.csv", "end,start,task,text,video_id\n3,nan,1,x,y\n", "line 2: 'nan'"),
        (
            "youcook2",
            "validation_youcook.csv",
            "end,start,task,text,video_id\n3,4,1,x,y\n",
            "begins at 4 s and ends at 3",
        ),
        ("msrvtt", "MSRVTT_JSFUSION_test.csv", "video_id,sentence\nv,a,b\n", "line 2: 2 cells are expected, 3"),
        ("audiocaps", "test.csv", "audiocap_id,youtube_id,start_time,caption\n", "list nothing"),
    ],
)
def test_malformed_files_of_every_kind(tmp_path: Path, layout: str, file: str, text: str, said: str) -> None:
    _write(tmp_path, file, text)
    with pytest.raises(TriptychError, match=said):
        read_layout(layout, None, tmp_path)


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    (_ucf(tmp_path) / "testlist01.txt").write_bytes(b"Archery/\xff.avi\n")
    with pytest.raises(TriptychError, match=r"testlist01\.txt is not UTF-8 text \(byte 8\)"):
        read_layout("ucf101", None, tmp_path)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_missing_annotation_file_says_what_and_where(tmp_path: Path, name: str) -> None:
    with pytest.raises(TriptychError, match=rf"Layout {name} needs .*which is not in {tmp_path}") as raised:
        read_layout(name, None, tmp_path)
    assert str(raised.value).count("\n") == 0


def test_wrong_requests(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no layout 'ucf100'; perhaps ucf101"):
        read_layout("ucf100", None, tmp_path)
    with pytest.raises(UsageError, match="no split '4'; choose 1, 2, 3"):
        read_layout("ucf101", None, tmp_path, 4)
    with pytest.raises(UsageError, match="ucf101 has no untrimmed form"):
        read_layout("ucf101", None, tmp_path, untrimmed=True)
    with pytest.raises(TriptychError, match="nowhere is no folder"):
        read_layout("ucf101", tmp_path / "nowhere", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TriptychError, match=r"None of the 3 files .* is below .*empty; the first is Archery/"):
        read_layout("ucf101", tmp_path / "empty", _ucf(tmp_path / "lists"))


def test_ave_as_published(lists: Path) -> None:
    layout = read_layout("ave", None, lists / "ave")
    assert len(layout.rows) == 4143 and len({row["path"] for row in layout.rows}) == 4097
    assert len(layout.classes) == 28 and layout.classes[0] == "Accordion"
    assert "no split" in layout.notes and "published" not in layout.notes
    _check_targets(layout)
    labels = [json.loads(str(row["segments"])) for row in layout.rows]
    assert {len(seconds) for seconds in labels} == {10}
    assert labels[0] == ["Church bell"] * 10  # 0&10
    assert labels[1] == ["background"] * 6 + ["Church bell"] * 2 + ["background"] * 2  # 6&8
    assert sum(seconds == ["background"] * 10 for seconds in labels) == 1  # an event from 0 to 0


def test_ave_in_parts(tmp_path: Path) -> None:
    events = ["Bark&aaa&good&2&7", "Race car, auto racing&bbb&good&0&10", "Bark&bbb&good&0&1", "Cat&ccc&good&9&10"]
    _write(tmp_path, "Annotations.txt", "Category&VideoID&Quality&StartTime&EndTime\n" + "\n".join(events))
    _write(tmp_path, "trainSet.txt", "\n".join(events[:3]) + "\n")
    _write(tmp_path, "testSet.txt", events[3] + "\n")
    layout = read_layout("ave", None, tmp_path)
    assert layout.classes == ("Bark", "Cat", "Race car, auto racing")
    assert _parts(layout) == {"train": 3, "test": 1}
    assert [row["path"] for row in layout.rows] == ["AVE/aaa.mp4", "AVE/bbb.mp4", "AVE/bbb.mp4", "AVE/ccc.mp4"]
    assert json.loads(str(layout.rows[0]["segments"])) == ["background"] * 2 + ["Bark"] * 5 + ["background"] * 3
    assert _parts(read_layout("ave", None, tmp_path, "test")) == {"test": 1}
    with pytest.raises(TriptychError, match=r"valSet.txt, which is not in"):
        read_layout("ave", None, tmp_path, "val")
    _write(tmp_path, "valSet.txt", "Dog&ddd&good&0&10\n")
    with pytest.raises(TriptychError, match=r"line 1: the class 'Dog' is not in Annotations.txt"):
        read_layout("ave", None, tmp_path)
    _write(tmp_path, "Annotations.txt", "Bark&aaa&good&2\n")
    with pytest.raises(TriptychError, match=r"line 1: CATEGORY&VIDEO&QUALITY&START&END is expected"):
        read_layout("ave", None, tmp_path)


def _crosstask(folder: Path) -> None:
    """Write CrossTask's lists by hand: two tasks, three videos of them and one of a related task."""
    blocks = ["16815", "Grill Steak", "https://a.b", "3", "season steak,put steak,flip steak", ""]
    blocks += ["23521", "Make Jello Shots", "https://c.d", "1", "pour water", ""]
    (folder / "tasks_primary.txt").write_text("\n".join(blocks))
    (folder / "videos.csv").write_text(
        "16815,abc,https://x\n16815,def,https://x\n23521,ghi,https://x\n9,rel,https://x\n"
    )
    (folder / "videos_val.csv").write_text("16815,def,https://x\n")
    (folder / "annotations").mkdir()
    (folder / "annotations" / "16815_abc.csv").write_text("1,3.5,6.0\n3,20,25.25\n1,30,31\n")
    (folder / "annotations" / "16815_def.csv").write_text("2,1,2\n")


def test_crosstask_by_hand(tmp_path: Path) -> None:
    _crosstask(tmp_path)
    layout = read_layout("crosstask", None, tmp_path)
    assert _parts(layout) == {"train": 1, "test": 1}
    first, second = layout.rows
    assert first["path"] == "abc.mp4" and first["task"] == "16815" and first["title"] == "Grill Steak"
    wanted = [["season steak", 3.5, 6.0, 30.0, 31.0], ["put steak"], ["flip steak", 20.0, 25.25]]
    assert json.loads(str(first["steps"])) == wanted
    assert json.loads(str(second["steps"])) == [["season steak"], ["put steak", 1.0, 2.0], ["flip steak"]]
    assert "1 videos have no file of annotations" in layout.notes and "18" in layout.notes
    (tmp_path / "cvpr19_test.csv").write_text("task,video_id,path\n16815,abc,x.npy\n")
    assert [row["path"] for row in read_layout("crosstask", None, tmp_path, "test").rows] == ["abc.mp4"]
    (tmp_path / "annotations" / "16815_abc.csv").write_text("4,1,2\n")
    with pytest.raises(TriptychError, match=r"16815_abc\.csv, line 1: task 16815 has the steps 1 to 3, not 4"):
        read_layout("crosstask", None, tmp_path)
    (tmp_path / "tasks_primary.txt").write_text("16815\nGrill\nurl\n2\na,b,c\n")
    with pytest.raises(TriptychError, match=r"tasks_primary\.txt, line 1: a task has five lines"):
        read_layout("crosstask", None, tmp_path)
