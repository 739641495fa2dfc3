# frozen_string_literal: true

require 'minitest/autorun'
require_relative 'lib/release'

# docs/bosh-properties.md lists the properties and links of all jobs, generated from the specs:
# UPDATE_GOLDEN=1 bosh/tests/run properties
class PropertiesTest < Minitest::Test
  PAGE = File.expand_path('../docs/bosh-properties.md', Release::ROOT)
  HEADER = <<~TEXT
    # Properties of the BOSH jobs

    Generated from the specs of the jobs by `UPDATE_GOLDEN=1 bosh/tests/run properties`. Properties below `portcullis.`
    do not exist in the original jobs; all others have the names, types and meanings of the originals. The director
    ignores properties that are not listed, so a manifest of an original job can be used unchanged.
  TEXT

  def test_the_page_lists_the_properties_of_the_specs
    page = ([HEADER] + Release.job_names.map { |name| section(Release.job(name)) }).join("\n")
    File.write(PAGE, page) if ENV['UPDATE_GOLDEN']
    assert_equal page, File.read(PAGE), 'UPDATE_GOLDEN=1 bosh/tests/run properties writes the page'
  end

  private

  def section(job)
    spec = job.spec
    rows = job.declared.sort.map { |name, property| row(name, property) }
    ["## #{job.name}\n", spec['description'], links(spec),
     "| property | default | description |\n|---|---|---|\n#{rows.join}"].compact.join("\n").sub("\n\n\n", "\n\n")
  end

  def links(spec)
    provides = (spec['provides'] || []).map { |link| "provides `#{link['name']}` (`#{link['type']}`)" }
    consumes = (spec['consumes'] || []).map do |link|
      "consumes `#{link['name']}` (`#{link['type']}`#{', optional' if link['optional']})"
    end
    all = provides + consumes
    "\nLinks: #{all.join(', ')}.\n" unless all.empty?
  end

  def row(name, property)
    default = property.key?('default') ? "`#{property['default'].to_json}`" : ''
    example = property.key?('example') ? " Example: `#{property['example'].to_json.gsub('|', '\\|')}`." : ''
    description = property['description'].strip.gsub(/\s+/, ' ').gsub('|', '\\|')
    "| `#{name}` | #{default} | #{description}#{example} |\n"
  end
end
