// For an element whose parts name in `data-act` what they do: tells the server. A dot of a plot is one such part.
element.addEventListener('click', (event) => {
  const part = event.target.closest('[data-act]')
  if (part && !part.matches('input, select')) trigger('select', {index: 0, value: part.dataset.act})
  const copy = event.target.closest('[data-copy]')
  if (copy) {
    navigator.clipboard?.writeText(location.href).then(() => {
      copy.textContent = 'Link copied'
    })
  }
  const brighter = event.target.closest('[data-brighter]')
  if (brighter) {
    const plain = document.body.toggleAttribute('data-lk-plain')
    brighter.setAttribute('aria-pressed', String(!plain))
    brighter.textContent = plain ? 'shown as it is' : 'shown brighter'
  }
})
element.addEventListener('change', (event) => {
  const {act} = event.target.dataset
  if (act && event.target.value) trigger('select', {index: 0, value: `${act}:${event.target.value}`})
})
