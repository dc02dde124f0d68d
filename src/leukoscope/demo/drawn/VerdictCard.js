// The dots open the cell's stability on the stage; a line chooses another model, and a tile opens a cell of a smear.
const details = () => element.querySelector("details");
let wantsMore = false;

function press(event) {
  if (event.target.closest("summary")) {
    wantsMore = !details().open;
  }
  if (event.target.closest(".checks")) {
    document.querySelector("#cell-stage [value=stability]").click();
  }
  const chosen = event.target.closest("[data-model], [data-number]")?.dataset;
  if (chosen?.model) {
    trigger("input", { model: chosen.model });
  } else if (chosen) {
    trigger("select", { number: Number(chosen.number) });
  }
}

element.addEventListener("click", press);
// What Gradio renders anew is folded.
watch("value", () => {
  if (details()) {
    details().open = wantsMore;
  }
});
// A strip says at once that something else is asked.
document.addEventListener("leukoscope:given", (event) => {
  if (event.detail.shown(element)) {
    props.value = { waiting: event.detail.words, problem: event.detail.problem };
  }
});
