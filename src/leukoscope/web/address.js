// Model, tab and example go to the page's address, which opens them again; Back leads to those before.
() => {
  const to = new URL(location), shown = document.querySelector('#visit [data-model]')?.dataset ?? {}
  const tab = document.querySelector('[role=tab][aria-selected=true]')?.dataset.tabId
  for (const [name, value] of Object.entries({model: shown.model, tab, example: shown.example}))
    value ? to.searchParams.set(name, value) : to.searchParams.delete(name)
  if (String(to) != String(location)) history[location.search ? 'pushState' : 'replaceState'](null, '', to)
}
