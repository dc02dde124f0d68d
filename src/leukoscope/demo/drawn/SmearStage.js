// Boxes are buttons; the scale is a form.
function boxes() {
  return [...element.querySelectorAll(".field > button, .cut")];
}

// A word stands above its box, or below or inside, where the picture ends or another word stands.
function placeWords() {
  const room = element.querySelector(".field")?.getBoundingClientRect();
  const taken = [];
  for (const word of element.querySelectorAll(".field > button span")) {
    for (const place of ["above", "below", "inside"]) {
      word.parentElement.dataset.place = place;
      const { top, bottom, left, right } = word.getBoundingClientRect();
      const isFree = (other) =>
        other.bottom <= top || bottom <= other.top || other.right <= left || right <= other.left;
      if (top >= room.top && bottom <= room.bottom && taken.every(isFree)) {
        break;
      }
    }
    taken.push(word.getBoundingClientRect());
  }
}

// The smear with its boxes and words, and the notice below.
function save() {
  const image = element.querySelector("img");
  const canvas = document.createElement("canvas");
  const { naturalWidth: width, naturalHeight: height } = image;
  const letter = Math.max(13, Math.round(width / 70));
  canvas.width = width;
  canvas.height = height + 2 * letter;
  const pen = canvas.getContext("2d");
  pen.fillStyle = "white";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(image, 0, 0);
  pen.font = `bold ${letter}px sans-serif`;
  pen.lineWidth = 3;
  for (const box of boxes()) {
    const scale = width / box.parentElement.clientWidth;
    const [left, top, wide, high] = ["Left", "Top", "Width", "Height"].map((side) => box["offset" + side] * scale);
    pen.strokeStyle = pen.fillStyle = getComputedStyle(box).borderColor;
    pen.strokeRect(left, top, wide, high);
    const line = { below: top + high + letter, inside: top + high - 6 }[box.dataset.place] ?? top - 4;
    pen.fillText(box.textContent, left, line);
  }
  pen.fillStyle = "black";
  pen.fillText(document.querySelector("#notice").innerText, letter, height + 1.4 * letter);
  const link = document.createElement("a");
  link.download = "leukoscope-smear.png";
  link.href = canvas.toDataURL("image/png");
  link.click();
}

function press(event) {
  const box = event.target.closest("[data-number]");
  if (box) {
    trigger("select", { number: Number(box.dataset.number) });
  } else if (event.target.closest(".save")) {
    save();
  }
}

element.addEventListener("click", press);
watch("value", placeWords);
new ResizeObserver(placeWords).observe(element);
element.addEventListener("submit", (event) => {
  event.preventDefault();
  trigger("submit", { um: event.target.elements.um.valueAsNumber });
});
document.addEventListener("leukoscope:given", (event) => {
  if (event.detail.shown(element) && "picture" in event.detail) {
    props.value = { picture: event.detail.picture, width: 4, height: 3 };
  }
});
