// For a hidden element that is sent a file: saves it through a Blob, because browsers refuse to save long data: addresses.
watch('value', () => {
  const sent = element.querySelector('template')?.content.textContent
  if (!sent) return
  const file = JSON.parse(sent)
  const bytes = Uint8Array.from(atob(file.content), (letter) => letter.charCodeAt(0))
  const link = document.createElement('a')
  link.href = URL.createObjectURL(new Blob([bytes], {type: file.kind}))
  link.download = file.name
  document.body.append(link)
  link.click()
  link.remove()
  setTimeout(() => URL.revokeObjectURL(link.href), 60000)
  element.querySelector('template').remove()
})
