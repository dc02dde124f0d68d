// For an element whose parts name in `data-act` what they do: tells the server. A dot of a plot or a tab is one such part.
element.addEventListener('click', (event) => {
  const part = event.target.closest('[data-act]')
  if (part && !part.matches('input, select')) trigger('select', {index: 0, value: part.dataset.act})
})
element.addEventListener('change', (event) => {
  const {act} = event.target.dataset
  if (act) trigger('select', {index: 0, value: `${act}:${event.target.value}`})
})
