// Views are radio buttons and the divider is a range: the browser gives them mouse, touch and keys.
const EARLIER = { turned: "stability", changed: "stability", covered: "cell" };
const divider = () => element.querySelector(".divider");
let position = divider().value;

function moveDivider() {
  position = divider().value;
  element.style.setProperty("--at", position / 100);
}

function rememberView(view) {
  const address = new URL(location);
  view === "cell" ? address.searchParams.delete("view") : address.searchParams.set("view", view);
  history.replaceState(null, "", address);
}

// A picture as it is drawn, without the brightness that it is shown with; below a map, what it is.
function save(words) {
  const isMap = element.querySelector("[value=map]").checked && element.querySelector(".map img");
  const image = element.querySelector(isMap ? ".map img" : ".cell img");
  const lines = isMap ? words.split("\n") : [];
  const canvas = document.createElement("canvas");
  const letter = image.naturalWidth / 36;
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight + 1.6 * letter * lines.length;
  const pen = canvas.getContext("2d");
  pen.fillStyle = "white";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(image, 0, 0);
  pen.fillStyle = "black";
  pen.font = `${letter}px sans-serif`;
  lines.forEach((line, place) => pen.fillText(line, letter, image.naturalHeight + 1.6 * letter * (place + 0.75)));
  const link = document.createElement("a");
  link.download = isMap ? "leukoscope-map.png" : "leukoscope-cell.png";
  link.href = canvas.toDataURL("image/png");
  link.click();
}

function press(event) {
  const { model, back } = event.target.dataset;
  if (model) {
    trigger("input", { model });
  } else if (back) {
    trigger("submit", { back });
  } else if (event.target.closest(".save")) {
    save(event.target.closest(".save").dataset.words);
  }
}

const named = new URLSearchParams(location.search).get("view");
for (const view of element.querySelectorAll("[name=view]")) {
  view.checked = view.value === (EARLIER[named] ?? named) || view.checked;
  view.addEventListener("change", () => rememberView(view.value));
}
element.addEventListener("input", (event) => {
  if (event.target === divider()) {
    moveDivider();
  }
});
// What Gradio renders anew has its divider in the middle.
watch("value", () => {
  if (divider()) {
    divider().value = position;
  }
});
element.addEventListener("click", press);
moveDivider();
// A visitor's picture is shown before it is sent.
document.addEventListener("leukoscope:given", (event) => {
  if (event.detail.shown(element) && "picture" in event.detail) {
    props.value = { picture: event.detail.picture, zoom: 1 };
  }
});
