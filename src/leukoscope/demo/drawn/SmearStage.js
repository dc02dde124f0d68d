// Boxes are buttons; the scale is a form.
function boxes() {
  return [...element.querySelectorAll(".field > button, .cut")];
}

// The smear with its boxes and words, and the notice below.
function save(notice) {
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
    const [left, top, wide, high] = ["left", "top", "width", "height"].map((side) => parseFloat(box.style[side]) / 100);
    pen.strokeStyle = pen.fillStyle = getComputedStyle(box).borderColor;
    pen.strokeRect(left * width, top * height, wide * width, high * height);
    pen.fillText(box.textContent, left * width, Math.max(letter, top * height - 4));
  }
  pen.fillStyle = "black";
  pen.fillText(notice, letter, height + 1.4 * letter);
  const link = document.createElement("a");
  link.download = "leukoscope-smear.png";
  link.href = canvas.toDataURL("image/png");
  link.click();
}

function press(event) {
  const box = event.target.closest("[data-number]");
  const saved = event.target.closest(".save");
  if (box) {
    trigger("select", { number: Number(box.dataset.number) });
  } else if (saved) {
    save(saved.dataset.notice);
  }
}

element.addEventListener("click", press);
element.addEventListener("submit", (event) => {
  event.preventDefault();
  trigger("submit", { um: event.target.elements.um.valueAsNumber });
});
document.addEventListener("leukoscope:given", (event) => {
  if (event.detail.shown(element) && "picture" in event.detail) {
    props.value = { picture: event.detail.picture, ratio: 1.33 };
  }
});
